// The functions and variables that CUDA C++ has in device code, in the global namespace as there.
#pragma once

#include <cuda_bf16.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "emulator.hpp"

#define CUDASIM_CALLER cudasim::Loc loc = cudasim::Loc::current()

// ---- built-in variables (set at each switch to a thread) ----
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---- barriers ----
inline void __syncthreads(CUDASIM_CALLER) {
  cudasim::block_barrier("__syncthreads()", cudasim::Vote::none, 0, loc);
}
inline int __syncthreads_count(int p, CUDASIM_CALLER) {
  return cudasim::block_barrier("__syncthreads_count()", cudasim::Vote::count, p, loc);
}
inline int __syncthreads_and(int p, CUDASIM_CALLER) {
  return cudasim::block_barrier("__syncthreads_and()", cudasim::Vote::all, p, loc);
}
inline int __syncthreads_or(int p, CUDASIM_CALLER) {
  return cudasim::block_barrier("__syncthreads_or()", cudasim::Vote::any, p, loc);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDASIM_CALLER) {
  cudasim::warp_op("__syncwarp()", cudasim::WarpOp::sync, mask, 0, loc);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap(CUDASIM_CALLER) { cudasim::fail("__trap()", loc); }

// ---- warp collectives ----
template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, CUDASIM_CALLER) {
  const int lane = static_cast<int>(cudasim::lane_id()), base = lane & ~(width - 1);
  return cudasim::shuffle_value("__shfl_sync()", mask, v, base + (source & (width - 1)), loc);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int x, int width = 32, CUDASIM_CALLER) {
  const int lane = static_cast<int>(cudasim::lane_id());
  int source = lane ^ x;
  if (source >= (lane & ~(width - 1)) + width) source = lane;
  return cudasim::shuffle_value("__shfl_xor_sync()", mask, v, source, loc);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned distance, int width = 32, CUDASIM_CALLER) {
  const int lane = static_cast<int>(cudasim::lane_id());
  int source = lane - static_cast<int>(distance);
  if (source < (lane & ~(width - 1))) source = lane;
  return cudasim::shuffle_value("__shfl_up_sync()", mask, v, source, loc);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned distance, int width = 32, CUDASIM_CALLER) {
  const int lane = static_cast<int>(cudasim::lane_id());
  int source = lane + static_cast<int>(distance);
  if (source >= (lane & ~(width - 1)) + width) source = lane;
  return cudasim::shuffle_value("__shfl_down_sync()", mask, v, source, loc);
}
inline unsigned __ballot_sync(unsigned mask, int p, CUDASIM_CALLER) {
  return cudasim::warp_op("__ballot_sync()", cudasim::WarpOp::ballot, mask, p != 0, loc);
}
inline int __any_sync(unsigned mask, int p, CUDASIM_CALLER) {
  return cudasim::warp_op("__any_sync()", cudasim::WarpOp::ballot, mask, p != 0, loc) != 0;
}
inline int __all_sync(unsigned mask, int p, CUDASIM_CALLER) {
  return cudasim::warp_op("__all_sync()", cudasim::WarpOp::ballot, mask, p != 0, loc) == mask;
}
inline unsigned __match_any_sync(unsigned mask, unsigned v, CUDASIM_CALLER) {
  return cudasim::warp_op("__match_any_sync()", cudasim::WarpOp::match, mask, v, loc);
}
#define CUDASIM_REDUCE(NAME, T, OP)                                                              \
  inline T NAME(unsigned mask, T v, CUDASIM_CALLER) {                                            \
    return static_cast<T>(                                                                       \
        cudasim::warp_op(#NAME "()", cudasim::WarpOp::OP, mask, static_cast<unsigned>(v), loc)); \
  }
CUDASIM_REDUCE(__reduce_add_sync, unsigned, add_u)
CUDASIM_REDUCE(__reduce_add_sync, int, add_i)
CUDASIM_REDUCE(__reduce_max_sync, unsigned, max_u)
CUDASIM_REDUCE(__reduce_max_sync, int, max_i)
CUDASIM_REDUCE(__reduce_min_sync, unsigned, min_u)
CUDASIM_REDUCE(__reduce_min_sync, int, min_i)
CUDASIM_REDUCE(__reduce_or_sync, unsigned, bit_or)
CUDASIM_REDUCE(__reduce_and_sync, unsigned, bit_and)
CUDASIM_REDUCE(__reduce_xor_sync, unsigned, bit_xor)
#undef CUDASIM_REDUCE
unsigned __activemask() = delete;  // no defined meaning to emulate: kernels pass the mask they mean

// ---- atomics (relaxed, as CUDA's are) ----
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return cudasim::atomic_update(p, [v](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return cudasim::atomic_update(p, [v](T old) { return old > v ? old : v; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return cudasim::atomic_update(p, [v](T old) { return old < v ? old : v; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return cudasim::atomic_update(p, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return cudasim::atomic_update(p, [expected, v](T old) { return old == expected ? v : old; });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> v) {
  return cudasim::atomic_update(p, [v](T old) { return static_cast<T>(old | v); });
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> v) {
  return cudasim::atomic_update(p, [v](T old) { return static_cast<T>(old & v); });
}

// ---- loads, stores, and arithmetic that <cmath> and the toolkit's headers lack on the host ----
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> v) {
  *p = v;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> v) {
  *p = v;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __saturatef(float x) { return x > 1 ? 1 : x > 0 ? x : 0; }

namespace cudasim {
template <class To, class From>
To bits_of(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace cudasim
inline unsigned __float_as_uint(float f) { return cudasim::bits_of<unsigned>(f); }
inline int __float_as_int(float f) { return cudasim::bits_of<int>(f); }
inline float __uint_as_float(unsigned u) { return cudasim::bits_of<float>(u); }
inline float __int_as_float(int i) { return cudasim::bits_of<float>(i); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }

inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __float2bfloat16(std::fma(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

#define CUDASIM_MIN_MAX(T)                         \
  inline T max(T a, T b) { return a < b ? b : a; } \
  inline T min(T a, T b) { return b < a ? b : a; }
CUDASIM_MIN_MAX(int)
CUDASIM_MIN_MAX(unsigned)
CUDASIM_MIN_MAX(long)
CUDASIM_MIN_MAX(unsigned long)
CUDASIM_MIN_MAX(long long)
CUDASIM_MIN_MAX(unsigned long long)
#undef CUDASIM_MIN_MAX
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }

#undef CUDASIM_CALLER
