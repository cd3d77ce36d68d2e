#include "ops/cuda/router_logits.hpp"

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/rows.cuh"

namespace moecollab::ops::cuda {

namespace {

constexpr int kDepth = 32;  // elements of D of one step
constexpr int kPerThread = 4;

// Four elements of a row from `d` on, zeros beyond its end.
template <bool kWide, class T>
__device__ Piece<float, 4> load_four(const T* row, std::int64_t d, std::int64_t size) {
  Piece<float, 4> out;
  if constexpr (kWide) {
    const auto piece = d < size ? *reinterpret_cast<const Piece<T, 4>*>(row + d) : Piece<T, 4>{};
#pragma unroll
    for (int i = 0; i < 4; ++i) out.values[i] = to_float(piece.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out.values[i] = d + i < size ? to_float(row[d + i]) : 0.0f;
  }
  return out;
}

// A tile of kRows x kDepth elements on its way from a row-major matrix through registers into shared memory,
// where it lies depth-major. Groups of four rows are exchanged by a function of the depth, so that neither
// the stores of a column nor the loads of a row meet in a bank.
template <class T, int kRows, int kThreads, bool kWide>
struct Tile {
  static constexpr int kLoads = kRows * kDepth / 4 / kThreads;
  static constexpr int kMask = kRows / 4 >= 8 ? 7 : kRows / 4 - 1;
  static_assert(kLoads >= 1 && kLoads * kThreads * 4 == kRows * kDepth);
  Piece<float, 4> in_flight[kLoads];

  __device__ void load(const T* x, std::int64_t first, std::int64_t rows, std::int64_t depth,
                       std::int64_t size) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x);
      const std::int64_t row = first + at / (kDepth / 4);
      in_flight[i] = row < rows ? load_four<kWide>(x + row * size, depth + at % (kDepth / 4) * 4, size)
                                : Piece<float, 4>{};
    }
  }
  __device__ void store(float* shared) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = at / (kDepth / 4), group = at % (kDepth / 4);
      const int column = ((row / 4) ^ (group & kMask)) * 4 + row % 4;
#pragma unroll
      for (int j = 0; j < 4; ++j) shared[(group * 4 + j) * kRows + column] = in_flight[i].values[j];
    }
  }
  // `four`: the rows 4 * four ... of the tile.
  static __device__ const float* four_rows(const float* shared, int depth, int four) {
    return shared + depth * kRows + (four ^ (depth / 4 & kMask)) * 4;
  }
};

// logits[t,e] = <x[t], w[e]> + bias[e]. A block of threads makes kTokens x kExperts of them, a thread kM x 4,
// from tiles of x and w in shared memory while the next ones are on their way in registers. Each logit is one
// f32 sum of fused products with d ascending from 0, plus zeros up to a multiple of kDepth, then the bias:
// the same in every tile shape, so it depends on x[t], w[e], bias[e] and D alone. Bytes moved: T * D *
// sizeof(T) + 4 * E * (D + 1) + 4 * T * E, where x is read again for every kExperts experts and w for every
// kTokens tokens from the second-level cache. Work: 2 * T * E * D.
template <class T, int kTokens, int kExperts, int kM, bool kWide>
__global__ void __launch_bounds__(kTokens / kM * (kExperts / kPerThread))
    router_logits_kernel(const T* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias,
                         std::int64_t tokens, std::int64_t experts, std::int64_t size,
                         float* __restrict__ logits) {
  constexpr int kThreads = kTokens / kM * (kExperts / kPerThread);
  MC_SHARED(float, x_tile, [kTokens * kDepth]);
  MC_SHARED(float, w_tile, [kExperts * kDepth]);
  const std::int64_t expert_tiles = (experts + kExperts - 1) / kExperts;
  const std::int64_t first_token = blockIdx.x / expert_tiles * kTokens;
  const std::int64_t first_expert = blockIdx.x % expert_tiles * kExperts;
  const int my_experts = static_cast<int>(threadIdx.x) % (kExperts / kPerThread);  // four of them
  const int my_tokens = static_cast<int>(threadIdx.x) / (kExperts / kPerThread);   // kM of them

  using XTile = Tile<T, kTokens, kThreads, kWide>;
  using WTile = Tile<float, kExperts, kThreads, kWide>;
  XTile next_x;
  WTile next_w;
  float sum[kM][kPerThread] = {};
  next_x.load(x, first_token, tokens, 0, size);
  next_w.load(w, first_expert, experts, 0, size);
  for (std::int64_t depth = 0; depth < size; depth += kDepth) {
    next_x.store(x_tile);
    next_w.store(w_tile);
    __syncthreads();
    if (depth + kDepth < size) {
      next_x.load(x, first_token, tokens, depth + kDepth, size);
      next_w.load(w, first_expert, experts, depth + kDepth, size);
    }
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const auto ws = *reinterpret_cast<const Piece<float, 4>*>(WTile::four_rows(w_tile, d, my_experts));
      const auto xs = *reinterpret_cast<const Piece<float, kM>*>(
          XTile::four_rows(x_tile, d, my_tokens * kM / 4) + my_tokens * kM % 4);
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kPerThread; ++n) sum[m][n] = __fmaf_rn(xs.values[m], ws.values[n], sum[m][n]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int n = 0; n < kPerThread; ++n) {
    const std::int64_t e = first_expert + my_experts * kPerThread + n;
    if (e >= experts) break;
    const float b = __ldg(bias + e);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const std::int64_t t = first_token + my_tokens * kM + m;
      if (t < tokens) logits[t * experts + e] = sum[m][n] + b;
    }
  }
}

template <class T, int kTokens, int kExperts, int kM>
void launch_logits(Stream& stream, const T* x, const float* w, const float* bias, std::int64_t tokens,
                   std::int64_t experts, std::int64_t size, float* logits) {
  const std::int64_t blocks = (tokens + kTokens - 1) / kTokens * ((experts + kExperts - 1) / kExperts);
  const gpu::Launch how{dim3(static_cast<unsigned>(blocks)), dim3(kTokens / kM * (kExperts / kPerThread)),
                        cuda_stream(stream)};
  if (size % 4 == 0 && aligned_to(4 * sizeof(T), {x}) && aligned_to(16, {w}))
    MC_LAUNCH((router_logits_kernel<T, kTokens, kExperts, kM, true>), how, x, w, bias, tokens, experts, size,
              logits);
  else
    MC_LAUNCH((router_logits_kernel<T, kTokens, kExperts, kM, false>), how, x, w, bias, tokens, experts, size,
              logits);
}

struct ColumnOf {
  const float* x;
  std::int64_t columns;
  template <int kN>
  __device__ void add(std::int64_t row, std::int64_t column, float (&sum)[kN]) const {
    static_assert(kN == 1);
    sum[0] += x[row * columns + column];
  }
};

}  // namespace

// Tiles by shape: narrow for few experts, low for few tokens, so that blocks suffice for the device.
template <class T>
void router_logits(Stream& stream, const T* x, const float* w, const float* bias, std::int64_t tokens,
                   std::int64_t experts, std::int64_t size, float* logits) {
  if (tokens * experts == 0) return;
  using D = typename OnDevice<T>::type;
  const auto* in = reinterpret_cast<const D*>(x);
  if (experts <= 16)
    launch_logits<D, 32, 16, 1>(stream, in, w, bias, tokens, experts, size, logits);
  else if (tokens <= 16384)
    launch_logits<D, 32, 64, 4>(stream, in, w, bias, tokens, experts, size, logits);
  else
    launch_logits<D, 64, 64, 4>(stream, in, w, bias, tokens, experts, size, logits);
}

// Bytes moved: 4 * rows * columns, and little for the partial sums.
void column_sums(Stream& stream, const float* x, std::int64_t rows, std::int64_t columns, float* sums) {
  add_column_sums<1>(stream, rows, columns, ColumnOf{x, columns}, sums);
}

#define MC_INSTANTIATE(T)                                                                                   \
  template void router_logits<T>(Stream&, const T*, const float*, const float*, std::int64_t, std::int64_t, \
                                 std::int64_t, float*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
