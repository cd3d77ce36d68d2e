// What the grouped products of both types share on the device: which tile a block makes, and what becomes of
// its sums. A piece is kPiece consecutive elements of a row, 16 bytes of T.
#pragma once

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/core/launch.cuh"
#include "moecollab/numerics/activation.hpp"
#include "ops/cuda/grouped_gemm.hpp"

namespace moecollab::ops::cuda {

template <GemmPass P>
struct GemmTraits {
  static constexpr bool kTwoRightSides = P == GemmPass::hidden_forward;  // of one left side
  static constexpr bool kTwoProducts = P == GemmPass::input_backward;    // added to one another
  static constexpr bool kAccumulates = P == GemmPass::weight_gradient;
  // How the operands lie: along k, or across it.
  static constexpr bool kLeftAcross = P == GemmPass::weight_gradient;
  static constexpr bool kRightAcross = P != GemmPass::hidden_forward && P != GemmPass::output_forward;
};

// A tile of a launch: of which problem, and where in its grid of tiles.
struct GemmPlace {
  std::int32_t problem, row, column;
};

// The last problem that begins at or before `tile`: every warp looks for it 32 problems at a time, so that
// the list costs one load for each 32 experts and not one after the other as a search by halves.
__device__ __forceinline__ std::int32_t problem_of_tile(const std::int32_t* first_tile,
                                                        std::int32_t num_problems, std::int32_t tile) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  std::int32_t begun = 0;
  for (std::int32_t base = 0; base < num_problems; base += 32) {
    const std::int32_t at = base + lane;
    const bool here = at < num_problems && __ldg(first_tile + at) <= tile;
    const std::int32_t found = __popc(__ballot_sync(0xffffffffu, here));
    begun += found;
    if (found < 32) break;
  }
  return begun - 1;
}

// Tiles follow one another down bands of kBand tile rows, column by column: blocks that run at one time share
// few rows of the left operand and few of the right one, which then come from the L2 cache.
template <class T>
__device__ __forceinline__ GemmPlace place_of_block(const GemmProblem<T>* problems,
                                                    const std::int32_t* first_tile,
                                                    std::int32_t num_problems) {
  constexpr std::int32_t kBand = 8;
  const auto tile = static_cast<std::int32_t>(blockIdx.x);
  GemmPlace place;
  place.problem = problem_of_tile(first_tile, num_problems, tile);
  const GemmProblem<T>& p = problems[place.problem];
  const std::int32_t local = tile - first_tile[place.problem];
  const std::int32_t band = local / (kBand * p.tiles_n), in_band = local % (kBand * p.tiles_n);
  const std::int32_t rows = min(kBand, p.tiles_m - band * kBand);
  place.row = band * kBand + in_band % rows;
  place.column = in_band / rows;
  return place;
}

__device__ __forceinline__ float load_element(const float* p) { return *p; }
__device__ __forceinline__ float load_element(const BFloat16* p) {
  return __uint_as_float(static_cast<unsigned>(p->bits) << 16);
}
// Stores and returns what a reader will find.
__device__ __forceinline__ float store_element(float* p, float value) { return *p = value; }
__device__ __forceinline__ float store_element(BFloat16* p, float value) {
  p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
  return load_element(p);
}

template <class T>
inline constexpr int kPiece = 16 / sizeof(T);

template <int N>
__device__ __forceinline__ void load_floats(const float* from, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(from + i);
    to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
  }
}
__device__ __forceinline__ void load_piece(const float* from, float (&to)[4]) { load_floats(from, to); }
__device__ __forceinline__ void unpack_bf16(const uint4& packed, float (&to)[8]) {
  const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void load_piece(const BFloat16* from, float (&to)[8]) {
  unpack_bf16(*reinterpret_cast<const uint4*>(from), to);
}
// `values` become what a reader will find.
__device__ __forceinline__ void store_piece(float* to, float (&values)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
}
__device__ __forceinline__ void store_piece(BFloat16* to, float (&values)[8]) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
    words[i] = __bfloat16_as_ushort(two.x) | static_cast<unsigned>(__bfloat16_as_ushort(two.y)) << 16;
  }
  const uint4 packed = make_uint4(words[0], words[1], words[2], words[3]);
  *reinterpret_cast<uint4*>(to) = packed;
  unpack_bf16(packed, values);
}

// The same for rows that begin anywhere: `count` elements of the piece exist.
template <bool Aligned, class T, int N>
__device__ __forceinline__ void load_row(const T* from, int count, float (&to)[N]) {
  if constexpr (Aligned) {
    load_piece(from, to);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = i < count ? load_element(from + i) : 0.0f;
  }
}
template <bool Aligned, class T, int N>
__device__ __forceinline__ void store_row(T* to, int count, float (&values)[N]) {
  if constexpr (Aligned) {
    store_piece(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < count) values[i] = store_element(to + i, values[i]);
  }
}

// What an expert does between its two products. Another activation is another of these.
struct SwiGlu {
  static constexpr bool kGated = true;
  __device__ static float value(float gate, float up) { return numerics::swiglu(gate, up); }
  __device__ static numerics::SwigluGrad<float> grad(float dh, float gate, float up) {
    return numerics::swiglu_grad(dh, gate, up);
  }
};
struct Relu {
  static constexpr bool kGated = false;
  __device__ static float value(float, float up) { return up > 0.0f ? up : 0.0f; }
  __device__ static numerics::SwigluGrad<float> grad(float dh, float, float up) {
    return {0.0f, up > 0.0f ? dh : 0.0f};
  }
};

// Stores the pre-activations, and hidden made of them as rounded: what backward will find.
template <class Activation, bool Aligned, class T, int N>
__device__ __forceinline__ void store_hidden(const GemmProblem<T>& p, std::int64_t at, int count,
                                             float (&gate)[N], float (&up)[N]) {
  if constexpr (Activation::kGated) store_row<Aligned>(p.gate + at, count, gate);
  store_row<Aligned>(p.up + at, count, up);
  float hidden[N];
#pragma unroll
  for (int i = 0; i < N; ++i) hidden[i] = Activation::value(gate[i], up[i]);
  store_row<Aligned>(p.out + at, count, hidden);
}

// dh becomes the gradients of the pre-activations, in their place; hidden is made again.
template <class Activation, bool Aligned, class T, int N>
__device__ __forceinline__ void store_hidden_gradients(const GemmProblem<T>& p, std::int64_t at, int count,
                                                       const float (&dh)[N]) {
  float gate[N] = {}, up[N], hidden[N];
  if constexpr (Activation::kGated) load_row<Aligned>(p.gate + at, count, gate);
  load_row<Aligned>(p.up + at, count, up);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    hidden[i] = Activation::value(gate[i], up[i]);
    const numerics::SwigluGrad<float> grad = Activation::grad(dh[i], gate[i], up[i]);
    gate[i] = grad.da;
    up[i] = grad.db;
  }
  store_row<Aligned>(p.out + at, count, hidden);
  if constexpr (Activation::kGated) store_row<Aligned>(p.gate + at, count, gate);
  store_row<Aligned>(p.up + at, count, up);
}

// One piece of a tile's sums: row and column lie inside C. `second` are the sums of the second right side.
template <GemmPass P, bool Aligned, class T, int N>
__device__ __forceinline__ void finish_piece(const GemmProblem<T>& p, std::int32_t row, std::int32_t column,
                                             float (&sums)[N], float (&second)[N]) {
  const std::int64_t at = static_cast<std::int64_t>(row) * p.n + column;
  const int count = min(N, p.n - column);
  if constexpr (P == GemmPass::hidden_forward) {
    if (p.b2 != nullptr)
      store_hidden<SwiGlu, Aligned>(p, at, count, sums, second);
    else
      store_hidden<Relu, Aligned>(p, at, count, second, sums);
  } else if constexpr (P == GemmPass::hidden_backward) {
    if (p.gate != nullptr)
      store_hidden_gradients<SwiGlu, Aligned>(p, at, count, sums);
    else
      store_hidden_gradients<Relu, Aligned>(p, at, count, sums);
  } else {
    if (p.skip != nullptr) {
      float skip[N];
      load_row<Aligned>(p.skip + at, count, skip);
#pragma unroll
      for (int i = 0; i < N; ++i) sums[i] += skip[i];
    }
    store_row<Aligned>(p.out + at, count, sums);
  }
}

}  // namespace moecollab::ops::cuda
