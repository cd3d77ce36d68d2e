// Elements in registers: read and written several at a time where size and alignment allow, one by one
// elsewhere. Which elements a thread takes is the same either way, so alignment never changes a result.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "ops/cuda/rows.cuh"

namespace moecollab::ops::cuda {

// The type of kernels for a type of tensors, and a pointer to it.
template <class A>
using Native = typename OnDevice<A>::type;
template <class A>
const Native<A>* native(const A* p) {
  return reinterpret_cast<const Native<A>*>(p);
}
template <class A>
Native<A>* native(A* p) {
  return reinterpret_cast<Native<A>*>(p);
}

// What arithmetic runs in.
template <class T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline float load(const float* p) { return *p; }
__device__ inline double load(const double* p) { return *p; }
__device__ inline float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }
__device__ inline void store(float* p, float value) { *p = value; }
__device__ inline void store(double* p, double value) { *p = value; }
__device__ inline void store(__nv_bfloat16* p, float value) { *p = __float2bfloat16(value); }

// As many elements as one access of 16 bytes moves.
template <class T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));

template <int kBytes>
struct WordsOf;
template <>
struct WordsOf<4> {
  using type = unsigned;
};
template <>
struct WordsOf<8> {
  using type = uint2;
};
template <>
struct WordsOf<16> {
  using type = uint4;
};

// v[i] = p[i] for i < valid, else 0. `aligned`: p is a multiple of the size of N elements.
template <int N, class T>
__device__ void load_some(const T* p, std::int64_t valid, bool aligned, Real<T> (&v)[N]) {
  using Words = typename WordsOf<N* static_cast<int>(sizeof(T))>::type;
  if (aligned && valid >= N) {
    const Words words = *reinterpret_cast<const Words*>(p);
    T elements[N];
    std::memcpy(static_cast<void*>(elements), &words, sizeof words);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = load(elements + i);
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = i < valid ? load(p + i) : Real<T>(0);
}
// p[i] = v[i] for i < valid.
template <int N, class T>
__device__ void store_some(T* p, std::int64_t valid, bool aligned, const Real<T> (&v)[N]) {
  using Words = typename WordsOf<N* static_cast<int>(sizeof(T))>::type;
  if (aligned && valid >= N) {
    T elements[N];
#pragma unroll
    for (int i = 0; i < N; ++i) store(elements + i, v[i]);
    Words words;
    std::memcpy(&words, static_cast<const void*>(elements), sizeof words);
    *reinterpret_cast<Words*>(p) = words;
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (i < valid) store(p + i, v[i]);
}

// Whether all rows of `width` elements of T begin at multiples of 16 bytes.
template <class T>
bool rows_aligned(std::int64_t width, std::initializer_list<const void*> pointers) {
  return width % kPack<T> == 0 && aligned_to(16, pointers);
}

inline unsigned blocks_for(std::int64_t units, std::int64_t per_block) {
  return static_cast<unsigned>((units + per_block - 1) / per_block);
}

}  // namespace moecollab::ops::cuda
