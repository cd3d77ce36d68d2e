// Mistakes, each with its cure: `cudasim_detect WHAT wrong` makes one, `cudasim_detect WHAT right` is the
// same program without it. detect.py expects the first to be found and the second to pass.
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "moecollab/core/launch.cuh"
#include "ops/cuda/ptx.cuh"

namespace {

namespace gpu = moecollab::gpu;
namespace ptx = moecollab::ops::cuda::ptx;
constexpr unsigned kFullWarp = 0xffffffffu;

// ---- threads that do not meet ----

__global__ void deadlock(int* out, bool right) {
  if (right || threadIdx.x < 40)
    __syncthreads();
  else if (threadIdx.x < 63)
    out[threadIdx.x] = __shfl_xor_sync(kFullWarp, 1, 1);
}
__global__ void divergent(int* out, bool right) {
  if (right || threadIdx.x % 2 == 0)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void wrong_mask(int* out, bool right) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1, right ? 12 : 20);
}
__global__ void exited_lane(int* out, bool right) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __reduce_add_sync(right ? kFullWarp & ~8u : kFullWarp, 1);
}

// ---- memory ----

__global__ void static_overrun(int* out, bool right) {
  MC_SHARED(int, a, [64]);
  a[threadIdx.x + (right ? 0 : 1)] = 1;
  __syncthreads();
  out[threadIdx.x] = a[threadIdx.x];
}
__global__ void dynamic_overrun(int* out, bool right) {
  MC_SHARED_DYNAMIC(int, a);
  a[threadIdx.x + (right ? 0 : 1)] = 1;
  __syncthreads();
  out[threadIdx.x] = a[threadIdx.x];
}
__global__ void global_overrun(int* out, bool right) { out[threadIdx.x + (right ? 0 : 1)] = 1; }
__global__ void misaligned(const int4* in, int* out, bool right) {
  const int* words = reinterpret_cast<const int*>(in) + (right ? 4 : 1);
  out[threadIdx.x] = reinterpret_cast<const int4*>(words)->x;
}

// ---- races ----

__global__ void race_in_block(int* out, bool right) {
  MC_SHARED(int, a, [64]);
  a[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (right) __syncthreads();
  out[threadIdx.x] = a[threadIdx.x ^ 32];
}
__global__ void race_in_warp(int* out, bool right) {
  MC_SHARED(int, a, [64]);
  a[threadIdx.x] = static_cast<int>(threadIdx.x);
  const int n = __shfl_xor_sync(kFullWarp, 1, 1);  // converges the lanes, orders no memory
  if (right) __syncwarp();
  out[threadIdx.x] = a[threadIdx.x ^ 1] + n;
}
__global__ void race_between_blocks(int* out, bool right) {
  if (right)
    atomicAdd(&out[threadIdx.x], 1);
  else
    out[threadIdx.x] += 1;
}
__global__ void race_with_copy(const int4* in, int* out,
                               bool right) {  // a buffer refilled while others still read it
  MC_SHARED(int4, a, [64]);
  for (int round = 0; round < 2; ++round) {
    ptx::cp_async<16>(&a[threadIdx.x], in + threadIdx.x);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = a[threadIdx.x ^ 32].x;
    if (right) __syncthreads();
  }
}
__global__ void copy_without_wait(const int4* in, int* out, bool right) {
  MC_SHARED(int4, a, [64]);
  ptx::cp_async<16>(&a[threadIdx.x], in + threadIdx.x);
  ptx::cp_async_commit();
  if (right) ptx::cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = a[threadIdx.x].x;
  ptx::cp_async_wait<0>();
}
__global__ void write_seven(int* out) { out[threadIdx.x] = 7; }
__global__ void add_one(int* out) { out[threadIdx.x] += 1; }

// ---- the programs: each returns whether all went well ----

struct Memory {
  int* out = nullptr;   // 64 zeros
  int4* in = nullptr;   // 64 zeros
  int* host = nullptr;  // pinned, 64 times -5

  Memory() {
    cudaMalloc(reinterpret_cast<void**>(&out), 64 * sizeof(int));
    cudaMalloc(reinterpret_cast<void**>(&in), 64 * sizeof(int4));
    cudaMallocHost(reinterpret_cast<void**>(&host), 64 * sizeof(int));
    cudaMemset(out, 0, 64 * sizeof(int));
    cudaMemset(in, 0, 64 * sizeof(int4));
    cudaDeviceSynchronize();
    for (int i = 0; i < 64; ++i) host[i] = -5;
  }
};

bool done(cudaError_t launched) { return launched == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess; }
bool expect(const char* what, int value, int expected) {
  std::printf("%s: %d, expected %d\n", what, value, expected);
  return value == expected;
}
int first_of(const int* device) {
  int value = 0;
  cudaMemcpy(&value, device, sizeof value, cudaMemcpyDeviceToHost);
  return value;
}

template <class... P>
std::function<bool(Memory&, bool)> kernel_of_out(void (*kernel)(P...), const char* name, gpu::Launch how) {
  return [=](Memory& memory, bool right) {
    return done(gpu::launch(gpu::Kernel{kernel, name, cudasim::Loc::current()}, how, memory.out, right));
  };
}
template <class... P>
std::function<bool(Memory&, bool)> kernel_of_both(void (*kernel)(P...), const char* name, gpu::Launch how) {
  return [=](Memory& memory, bool right) {
    return done(
        gpu::launch(gpu::Kernel{kernel, name, cudasim::Loc::current()}, how, memory.in, memory.out, right));
  };
}

bool missing_wait(Memory& memory, bool right) {
  const gpu::Launch how{1, 64};
  return done(gpu::launch(MC_KERNEL(copy_without_wait), how, memory.in, memory.out, right)) &&
         expect("copied", first_of(memory.out), 0);
}
bool shared_limit(Memory& memory, bool right) {
  if (right) moecollab::gpu::allow_shared(write_seven, 60000);
  return done(gpu::launch(MC_KERNEL(write_seven), gpu::Launch{1, 64, nullptr, 60000}, memory.out));
}
bool host_pointer(Memory& memory, bool right) {
  std::vector<int> pageable(64);
  return done(gpu::launch(MC_KERNEL(write_seven), gpu::Launch{1, 64}, right ? memory.out : pageable.data()));
}
bool other_device(Memory& memory, bool right) {
  if (!right) cudaSetDevice(1);
  return done(gpu::launch(MC_KERNEL(write_seven), gpu::Launch{1, 64}, memory.out));
}
bool host_reads_device(Memory& memory, bool right) {
  return expect("on the device", right ? first_of(memory.out) : memory.out[0], 0);
}
// With lazy streams: what nothing has waited for has not happened.
bool missing_synchronize(Memory& memory, bool right) {
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  gpu::launch(MC_KERNEL(write_seven), gpu::Launch{1, 64, stream}, memory.out);
  cudaMemcpyAsync(memory.host, memory.out, 64 * sizeof(int), cudaMemcpyDeviceToHost, stream);
  if (right) cudaStreamSynchronize(stream);
  return expect("on the host", memory.host[0], 7);
}
bool missing_event(Memory& memory, bool right) {
  cudaStream_t one = nullptr, two = nullptr;
  cudaEvent_t written = nullptr;
  cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&written, cudaEventDisableTiming);
  gpu::launch(MC_KERNEL(write_seven), gpu::Launch{1, 64, one}, memory.out);
  cudaEventRecord(written, one);
  gpu::launch(MC_KERNEL(add_one), gpu::Launch{1, 64, one}, memory.out);  // behind the event: not waited for
  if (right) cudaStreamWaitEvent(two, written, 0);
  cudaMemcpyAsync(memory.host, memory.out, 64 * sizeof(int), cudaMemcpyDeviceToHost, two);
  cudaStreamSynchronize(two);
  cudaEventDestroy(written);
  return expect("on the other stream", memory.host[0], 7);
}
bool staging_reused(Memory& memory, bool right) {
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaMemcpyAsync(memory.out, memory.host, 64 * sizeof(int), cudaMemcpyHostToDevice, stream);
  if (right) cudaStreamSynchronize(stream);
  memory.host[0] = 0;
  cudaStreamSynchronize(stream);
  return expect("on the device", first_of(memory.out), -5);
}

#define OUT(kernel, ...) \
  { #kernel, kernel_of_out(kernel, #kernel, gpu::Launch{__VA_ARGS__}) }
#define BOTH(kernel, ...) \
  { #kernel, kernel_of_both(kernel, #kernel, gpu::Launch{__VA_ARGS__}) }
#define PROGRAM(function) \
  { #function, function }

const std::map<std::string, std::function<bool(Memory&, bool)>>& programs() {
  static const std::map<std::string, std::function<bool(Memory&, bool)>> map{
      OUT(deadlock, 1, 64),       OUT(divergent, 1, 64),
      OUT(wrong_mask, 1, 64),     OUT(exited_lane, 1, 32),
      OUT(static_overrun, 1, 64), OUT(dynamic_overrun, 1, 64, nullptr, 64 * sizeof(int)),
      OUT(global_overrun, 1, 64), OUT(race_in_block, 1, 64),
      OUT(race_in_warp, 1, 64),   OUT(race_between_blocks, 4, 64),
      BOTH(misaligned, 1, 64),    BOTH(race_with_copy, 1, 64),
      PROGRAM(missing_wait),      PROGRAM(shared_limit),
      PROGRAM(host_pointer),      PROGRAM(other_device),
      PROGRAM(host_reads_device), PROGRAM(missing_synchronize),
      PROGRAM(missing_event),     PROGRAM(staging_reused),
  };
  return map;
}

}  // namespace

int main(int argc, char** argv) {
  const auto program = argc == 3 ? programs().find(argv[1]) : programs().end();
  if (program == programs().end()) {
    std::fprintf(stderr, "usage: cudasim_detect WHAT wrong|right\n");
    return 64;
  }
  Memory memory;
  return program->second(memory, std::strcmp(argv[2], "right") == 0) ? 0 : 1;
}
