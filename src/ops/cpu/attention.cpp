// Attention in tiles on gemm(): f32 products for f32, bf16 products with f32 sums for bf16, where the softmax
// weights and their gradients are rounded to bf16 before they are multiplied. Softmax itself is in f32.
// Forward works per (sequence, key/value head, query tile), backward per (sequence, key/value head): fixed
// units, each of one thread, so the bits depend on no thread count. A unit runs over its query heads and
// tiles in a fixed order. Causal tiles above the diagonal are skipped.

#include "ops/cpu/attention.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/numerics/softmax.hpp"
#include "ops/cpu/convert.hpp"
#include "ops/cpu/gemm.hpp"
#include "ops/cpu/scratch.hpp"

namespace moecollab::ops::cpu {
namespace {

constexpr std::int64_t kQueryTile = 128, kKeyTile = 128;

// Columns of a score row that the query may see: keys [key0, key0 + num_keys), the causal rule cuts behind
// it.
std::int64_t visible(bool causal, std::int64_t query, std::int64_t key0, std::int64_t num_keys) {
  return causal ? std::clamp<std::int64_t>(query - key0 + 1, 0, num_keys) : num_keys;
}

// The softmax weights leave in the operand type: in place for f32, rounded into their own tile for bf16.
template <class A>
A* weights_tile(float* scores, A* rounded) {
  if constexpr (std::is_same_v<A, float>)
    return scores;
  else
    return rounded;
}

struct RowState {
  float max = -HUGE_VALF, sum = 0.0f;
};

// One row of an online softmax: scores to weights, zero from `seen` to `num_keys`. Returns the factor for
// what the row has accumulated.
template <class A>
float softmax_row(float* scores, std::int64_t seen, std::int64_t num_keys, float scale, RowState& state,
                  A* weights) {
  float max = state.max;
#pragma omp simd reduction(max : max)
  for (std::int64_t j = 0; j < seen; ++j) max = std::max(max, scale * scores[j]);
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < seen; ++j) {
    const float p = numerics::exp_fast(scale * scores[j] - max);
    sum += p;
    store(weights[j], p);
  }
  for (std::int64_t j = seen; j < num_keys; ++j) store(weights[j], 0.0f);
  const float factor = numerics::softmax_rescale(state.max, max);
  state.sum = state.sum * factor + sum;
  state.max = max;
  return factor;
}

}  // namespace

template <class A>
void attention_forward(const A* q, const A* k, const A* v, const std::int32_t* lengths,
                       const AttentionExtents& x, A* out, float* lse) {
  const std::int64_t S = x.S, H = x.H, Dh = x.Dh, G = x.H / std::max<std::int64_t>(1, x.Hkv);
  const std::int64_t row_q = H * Dh, row_kv = x.Hkv * Dh;
  const std::int64_t query_tiles = (S + kQueryTile - 1) / kQueryTile;
  const auto scale = static_cast<float>(x.scale);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t unit = 0; unit < x.B * x.Hkv * query_tiles; ++unit) {
    // The last query tiles of a causal sequence are the longest: they go first.
    const std::int64_t tile = query_tiles - 1 - unit / (x.B * x.Hkv);
    const std::int64_t b = unit / x.Hkv % x.B, hkv = unit % x.Hkv;
    const std::int64_t q0 = tile * kQueryTile, q1 = std::min(S, q0 + kQueryTile);
    const std::int64_t length = lengths[b], rows = std::clamp<std::int64_t>(length - q0, 0, q1 - q0);
    const std::int64_t keys = x.causal ? std::min(length, q0 + rows) : length;
    thread_local Scratch scratch, rounded_scratch;
    float* const scores = scratch.take<float>(kQueryTile * (kKeyTile + Dh));
    float* const sums = scores + kQueryTile * kKeyTile;
    A* const rounded = weights_tile<A>(scores, rounded_scratch.take<A>(kQueryTile * kKeyTile));
    for (std::int64_t h = hkv * G; h < (hkv + 1) * G; ++h) {
      const A* const q_tile = q + (b * S + q0) * row_q + h * Dh;
      A* const out_tile = out + (b * S + q0) * row_q + h * Dh;
      float* const lse_tile = lse + (b * H + h) * S + q0;
      RowState state[kQueryTile];
      for (std::int64_t key0 = 0; rows > 0 && key0 < keys; key0 += kKeyTile) {
        const std::int64_t n = std::min(kKeyTile, keys - key0);
        const std::int64_t kv = (b * S + key0) * row_kv + hkv * Dh;
        gemm({Trans::no, Trans::yes, rows, n, Dh, row_q, row_kv, kKeyTile}, q_tile, k + kv, 0, scores);
        for (std::int64_t i = 0; i < rows; ++i) {
          const float factor = softmax_row(scores + i * kKeyTile, visible(x.causal, q0 + i, key0, n), n,
                                           scale, state[i], rounded + i * kKeyTile);
          if (key0 == 0) continue;
#pragma omp simd
          for (std::int64_t d = 0; d < Dh; ++d) sums[i * Dh + d] *= factor;
        }
        gemm({Trans::no, Trans::no, rows, Dh, n, kKeyTile, row_kv, Dh}, rounded, v + kv, key0 == 0 ? 0 : 1,
             sums);
      }
      for (std::int64_t i = 0; i < rows; ++i) {
        const float inverse = 1.0f / state[i].sum;
#pragma omp simd
        for (std::int64_t d = 0; d < Dh; ++d) store(out_tile[i * row_q + d], sums[i * Dh + d] * inverse);
        lse_tile[i] = numerics::log_sum_exp(state[i].max, state[i].sum);
      }
      for (std::int64_t i = rows; i < q1 - q0; ++i) {
        std::fill_n(out_tile + i * row_q, Dh, A(0.0f));
        lse_tile[i] = 0.0f;
      }
    }
  }
}

namespace {

// One (sequence, key/value head) of the backward pass. Per key tile, over the query heads and their tiles:
// P = exp(scale S - lse), dV += P^T dO, dS = P * (dO V^T - rowsum(dO * O)), dQ += dS K, dK += dS^T Q.
template <class A>
struct BackwardUnit {
  const A *d_out, *q, *k, *v, *out;
  const float* lse;
  AttentionExtents x;
  std::int64_t b, hkv, length;
  A *dq, *dk, *dv;

  std::int64_t group() const { return x.H / x.Hkv; }
  std::int64_t row_q() const { return x.H * x.Dh; }
  std::int64_t row_kv() const { return x.Hkv * x.Dh; }
  std::int64_t at_q(std::int64_t h, std::int64_t s) const { return (b * x.S + s) * row_q() + h * x.Dh; }
  std::int64_t at_kv(std::int64_t s) const { return (b * x.S + s) * row_kv() + hkv * x.Dh; }

  float *scores = nullptr, *d_weights = nullptr;  // [kQueryTile, kKeyTile]
  float *row_dots = nullptr, *dq_sums = nullptr;  // [G, length] rowsum(dO * O); [G, length, Dh]
  float *dk_sums = nullptr, *dv_sums = nullptr;   // [kKeyTile, Dh]
  A *weights = nullptr, *d_scores = nullptr;      // [kQueryTile, kKeyTile], in place for f32

  void run() {
    thread_local Scratch floats, rounded;
    const std::int64_t tile = kQueryTile * kKeyTile, G = group();
    scores = floats.take<float>(2 * tile + 2 * kKeyTile * x.Dh + G * length * (1 + x.Dh));
    d_weights = scores + tile;
    dk_sums = d_weights + tile;
    dv_sums = dk_sums + kKeyTile * x.Dh;
    dq_sums = dv_sums + kKeyTile * x.Dh;
    row_dots = dq_sums + G * length * x.Dh;
    A* const room = rounded.take<A>(2 * tile);
    weights = weights_tile<A>(scores, room);
    d_scores = weights_tile<A>(d_weights, room + tile);

    sum_rows();
    std::fill_n(dq_sums, G * length * x.Dh, 0.0f);
    for (std::int64_t key0 = 0; key0 < length; key0 += kKeyTile) {
      const std::int64_t n = std::min(kKeyTile, length - key0);
      bool first = true;
      for (std::int64_t g = 0; g < G; ++g)
        for (std::int64_t q0 = x.causal ? key0 / kQueryTile * kQueryTile : 0; q0 < length; q0 += kQueryTile) {
          tile_pair(g, q0, std::min(kQueryTile, length - q0), key0, n, first ? 0.0f : 1.0f);
          first = false;
        }
      write_rows(dk_sums, n, static_cast<float>(x.scale), dk + at_kv(key0), row_kv());
      write_rows(dv_sums, n, 1.0f, dv + at_kv(key0), row_kv());
    }
    for (std::int64_t g = 0; g < G; ++g)
      write_rows(dq_sums + g * length * x.Dh, length, static_cast<float>(x.scale), dq + at_q(hkv * G + g, 0),
                 row_q());
    clear_padding();
  }

  void sum_rows() {
    for (std::int64_t g = 0; g < group(); ++g)
      for (std::int64_t s = 0; s < length; ++s) {
        const A *left = d_out + at_q(hkv * group() + g, s), *right = out + at_q(hkv * group() + g, s);
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t d = 0; d < x.Dh; ++d) sum += load(left[d]) * load(right[d]);
        row_dots[g * length + s] = sum;
      }
  }

  void tile_pair(std::int64_t g, std::int64_t q0, std::int64_t rows, std::int64_t key0, std::int64_t n,
                 float beta) {
    const std::int64_t h = hkv * group() + g, Dh = x.Dh;
    const A *q_tile = q + at_q(h, q0), *do_tile = d_out + at_q(h, q0);
    const A *k_tile = k + at_kv(key0), *v_tile = v + at_kv(key0);
    gemm({Trans::no, Trans::yes, rows, n, Dh, row_q(), row_kv(), kKeyTile}, q_tile, k_tile, 0, scores);
    gemm({Trans::no, Trans::yes, rows, n, Dh, row_q(), row_kv(), kKeyTile}, do_tile, v_tile, 0, d_weights);
    const auto scale = static_cast<float>(x.scale);
    for (std::int64_t i = 0; i < rows; ++i) {
      const float row_lse = lse[(b * x.H + h) * x.S + q0 + i], dot = row_dots[g * length + q0 + i];
      const float *s = scores + i * kKeyTile, *dp = d_weights + i * kKeyTile;
      A *p_out = weights + i * kKeyTile, *ds_out = d_scores + i * kKeyTile;
      const std::int64_t seen = visible(x.causal, q0 + i, key0, n);
#pragma omp simd
      for (std::int64_t j = 0; j < seen; ++j) {
        const float p = numerics::exp_fast(scale * s[j] - row_lse);
        const float ds = p * (dp[j] - dot);
        store(p_out[j], p);
        store(ds_out[j], ds);
      }
      for (std::int64_t j = seen; j < n; ++j) store(p_out[j], 0.0f), store(ds_out[j], 0.0f);
    }
    gemm({Trans::yes, Trans::no, n, Dh, rows, kKeyTile, row_q(), Dh}, weights, do_tile, beta, dv_sums);
    gemm({Trans::yes, Trans::no, n, Dh, rows, kKeyTile, row_q(), Dh}, d_scores, q_tile, beta, dk_sums);
    gemm({Trans::no, Trans::no, rows, Dh, n, kKeyTile, row_kv(), Dh}, d_scores, k_tile, 1,
         dq_sums + (g * length + q0) * Dh);
  }

  void write_rows(const float* sums, std::int64_t rows, float factor, A* to, std::int64_t stride) const {
    for (std::int64_t i = 0; i < rows; ++i) {
#pragma omp simd
      for (std::int64_t d = 0; d < x.Dh; ++d) store(to[i * stride + d], factor * sums[i * x.Dh + d]);
    }
  }

  void clear_padding() const {
    for (std::int64_t s = length; s < x.S; ++s) {
      std::fill_n(dk + at_kv(s), x.Dh, A(0.0f));
      std::fill_n(dv + at_kv(s), x.Dh, A(0.0f));
      std::fill_n(dq + at_q(hkv * group(), s), group() * x.Dh, A(0.0f));
    }
  }
};

}  // namespace

template <class A>
void attention_backward(const A* d_out, const A* q, const A* k, const A* v, const std::int32_t* lengths,
                        const A* out, const float* lse, const AttentionExtents& x, A* dq, A* dk, A* dv) {
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t unit = 0; unit < x.B * x.Hkv; ++unit) {
    const std::int64_t b = unit / x.Hkv;
    BackwardUnit<A> one{d_out, q, k, v, out, lse, x, b, unit % x.Hkv, lengths[b], dq, dk, dv};
    one.run();
  }
}

template void attention_forward<float>(const float*, const float*, const float*, const std::int32_t*,
                                       const AttentionExtents&, float*, float*);
template void attention_forward<BFloat16>(const BFloat16*, const BFloat16*, const BFloat16*,
                                          const std::int32_t*, const AttentionExtents&, BFloat16*, float*);
template void attention_backward<float>(const float*, const float*, const float*, const float*,
                                        const std::int32_t*, const float*, const float*,
                                        const AttentionExtents&, float*, float*, float*);
template void attention_backward<BFloat16>(const BFloat16*, const BFloat16*, const BFloat16*, const BFloat16*,
                                           const std::int32_t*, const BFloat16*, const float*,
                                           const AttentionExtents&, BFloat16*, BFloat16*, BFloat16*);

}  // namespace moecollab::ops::cpu
