// Every PTX instruction that kernels use, one function each: inline assembly under nvcc, its emulation
// elsewhere. This is the only kernel code that differs between the two; tests/cuda/ptx_test.cu holds each
// function against its definition in the PTX manual on whatever it is built for.
#pragma once

#include "moecollab/core/launch.cuh"

// The call in the kernel, for the emulator's reports.
#ifdef __CUDACC__
#define MC_PTX_CALLER
#else
#define MC_PTX_CALLER , cudasim::Loc loc = cudasim::Loc::current()
#endif

namespace moecollab::ops::cuda::ptx {

#ifndef __CUDACC__
namespace emulated {
// In words, as the device stores, and in code that the race detector sees.
inline void store(void* to, const void* bytes, unsigned size) {
  for (unsigned i = 0; i < size / 4; ++i) {
    std::uint32_t word;
    std::memcpy(&word, static_cast<const unsigned char*>(bytes) + 4 * i, 4);
    static_cast<volatile std::uint32_t*>(to)[i] = word;
  }
}

template <int Count, bool Transposed>
void ldmatrix(unsigned (&r)[Count], const void* row, cudasim::Loc loc) {
  std::uint16_t copy[8] = {};
  if (cudasim::lane_id() < 8 * Count) {  // the other lanes' addresses are not used
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0)
      cudasim::fail("ldmatrix: the address of the row is not aligned to 16 bytes", loc);
    if (!cudasim::is_shared(row, 16)) cudasim::fail("ldmatrix: the row is not in shared memory", loc);
    std::memcpy(copy, row, 16);
  }
  cudasim::ldmatrix(Count, Transposed, copy, r, loc);
}
}  // namespace emulated
#endif

// cp.async: copies `Bytes` (16, 8 or 4) from global to shared memory, both aligned to as many; of the source
// only the first `valid` bytes are read, the rest becomes zero. The target holds the bytes after the wait
// that covers the copy, in the threads that meet the waiting one at a barrier behind it.
template <int Bytes>
__device__ __forceinline__ void cp_async(void* to, const void* from, int valid = Bytes MC_PTX_CALLER) {
  static_assert(Bytes == 16 || Bytes == 8 || Bytes == 4);
#ifdef __CUDACC__
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(valid)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(from), "n"(Bytes),
                 "r"(valid)
                 : "memory");
#else
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % Bytes != 0)
    cudasim::fail("cp.async: an address is not aligned to the size of the copy", loc);
  if (!cudasim::is_shared(to, Bytes)) cudasim::fail("cp.async: the target is not in shared memory", loc);
  if (valid < 0 || valid > Bytes) cudasim::fail("cp.async: the size of the source is out of range", loc);
  alignas(16) unsigned char bytes[Bytes] = {}, in_flight[Bytes];
  for (int i = 0; i < valid; ++i) bytes[i] = static_cast<const unsigned char*>(from)[i];
  std::memset(in_flight, 0xff, Bytes);  // neither the old bytes nor the new
  emulated::store(to, in_flight, Bytes);
  cudasim::cp_async_issue(to, bytes, Bytes);
#endif
}

// Closes the group of this thread's copies since the last commit.
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cudasim::cp_async_commit();
#endif
}

// Waits until at most `Keep` of this thread's groups, the latest, are in flight.
template <int Keep>
__device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(Keep) : "memory");
#else
  void* to = nullptr;
  const void* bytes = nullptr;
  unsigned size = 0;
  while (cudasim::cp_async_next(Keep, &to, &bytes, &size)) emulated::store(to, bytes, size);
#endif
}

// ldmatrix: four 8x8 matrices of 16-bit elements from shared memory. Lanes 8j..8j+7 give the addresses
// (aligned to 16 bytes) of the rows of matrix j; lane l receives in r[j] elements (l / 4, l % 4 * 2) and (l /
// 4, l % 4 * 2 + 1).
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row MC_PTX_CALLER) {
#ifdef __CUDACC__
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
#else
  emulated::ldmatrix<4, false>(r, row, loc);
#endif
}

// The same of the transposed matrices: elements (l % 4 * 2, l / 4) and (l % 4 * 2 + 1, l / 4).
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* row MC_PTX_CALLER) {
#ifdef __CUDACC__
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
#else
  emulated::ldmatrix<4, true>(r, row, loc);
#endif
}

// mma.sync m16n8k16: d = a b + c with a [16, 16] row-major and b [16, 8] column-major in bf16, c and d in
// f32; d may be c. With g = lane / 4 and t = lane % 4 * 2, a lane holds (low half, high half of each word)
//   a: rows g and g + 8 at columns t, t + 1, then the same at columns t + 8, t + 9;
//   b: rows t, t + 1, then t + 8, t + 9 of column g;
//   c, d: row g at columns t, t + 1, then row g + 8.
__device__ __forceinline__ void mma_bf16_16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                               const float (&c)[4] MC_PTX_CALLER) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
#else
  cudasim::mma_bf16_16816(a, b, c, d, loc);
#endif
}

}  // namespace moecollab::ops::cuda::ptx
