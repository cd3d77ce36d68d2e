// What kernels and their launchers include. The same text compiles with nvcc and, over a test-only emulation,
// with a host compiler; kernels use these in place of the syntax that only nvcc parses. Not a public header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "moecollab/core/cuda_check.cuh"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>
// A shared array or, with no dimension, a shared scalar: MC_SHARED(float, tile, [16][17]); MC_SHARED(int,
// total);
#define MC_SHARED(T, name, ...) __shared__ __align__(16) T name __VA_ARGS__
// The block's dynamic shared memory.
#define MC_SHARED_DYNAMIC(T, name)                              \
  extern __shared__ __align__(128) unsigned char mc_dynamic_[]; \
  T* name = reinterpret_cast<T*>(mc_dynamic_)
#else
#include <cudasim.hpp>
#define MC_SHARED(T, name, ...)       \
  static const char name##_key_ = 0;  \
  typedef T name##_type_ __VA_ARGS__; \
  name##_type_& name =                \
      *static_cast<name##_type_*>(::cudasim::static_smem(&name##_key_, sizeof(name##_type_), #name))
#define MC_SHARED_DYNAMIC(T, name) T* name = static_cast<T*>(::cudasim::dynamic_smem())
#endif

namespace moecollab::gpu {

struct Launch {
  dim3 grid, block;
  cudaStream_t stream = nullptr;
  std::size_t shared_bytes = 0;
};

// A kernel and, on the emulator, what a report calls it.
template <class... P>
struct Kernel {
  void (*function)(P...);
  const char* name;
#ifndef __CUDACC__
  cudasim::Loc loc;
#endif
};
template <class... P>
#ifdef __CUDACC__
Kernel(void (*)(P...), const char*) -> Kernel<P...>;
#else
Kernel(void (*)(P...), const char*, cudasim::Loc) -> Kernel<P...>;
#endif

template <class... P, class... A>
cudaError_t launch(const Kernel<P...>& kernel, const Launch& how, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "kernel and launch disagree on the number of arguments");
  std::tuple<std::remove_cv_t<P>...> values(std::forward<A>(args)...);
#ifdef __CUDACC__
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  return std::apply(
      [&](auto&... v) {
        void* pointers[] = {static_cast<void*>(&v)..., nullptr};
        return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel.function), pointers);
      },
      values);
#else
  cudasim::LaunchInfo info{
      kernel.name, how.grid, how.block, how.shared_bytes, reinterpret_cast<const void*>(kernel.function),
      kernel.loc};
  cudaError_t bad = cudaSuccess;
  int index = 0;
  auto check = [&](const auto& v) {
    if constexpr (std::is_pointer_v<std::remove_cvref_t<decltype(v)> >)
      if (bad == cudaSuccess) bad = cudasim::check_pointer_argument(info, index, v);
    ++index;
  };
  std::apply([&](const auto&... v) { (check(v), ...); }, values);
  if (bad != cudaSuccess) return bad;
  // Every thread gets the arguments by value, as a kernel does.
  return cudasim::launch(info, how.stream,
                         [function = kernel.function, values] { std::apply(function, values); });
#endif
}

// Dynamic shared memory over 48 KiB has to be asked for, once per kernel.
template <class... P>
void allow_shared(void (*kernel)(P...), std::size_t bytes) {
  check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "cudaFuncSetAttribute");
}

}  // namespace moecollab::gpu

// MC_KERNEL(kernel) names a kernel for gpu::launch; parenthesise one with template commas.
// MC_LAUNCH(kernel, (gpu::Launch{grid, block, stream, shared_bytes}), args...) throws when the launch fails.
#ifdef __CUDACC__
#define MC_KERNEL(kernel) \
  ::moecollab::gpu::Kernel { kernel, #kernel }
#else
#define MC_KERNEL(kernel) \
  ::moecollab::gpu::Kernel { kernel, #kernel, cudasim::Loc::current() }
#endif
#define MC_LAUNCH(kernel, how, ...)                                                                    \
  ::moecollab::check_cuda(::moecollab::gpu::launch(MC_KERNEL(kernel), how __VA_OPT__(, ) __VA_ARGS__), \
                          #kernel)
