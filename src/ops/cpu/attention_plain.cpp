// Attention in plain loops: all of `double`, the reference of gradient checks, and decoding, where one query
// per head meets its cache and there is nothing to tile.

#include <algorithm>
#include <cmath>

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/numerics/softmax.hpp"
#include "ops/cpu/attention.hpp"
#include "ops/cpu/convert.hpp"
#include "ops/cpu/scratch.hpp"

namespace moecollab::ops::cpu {
namespace {

template <class A, class Acc>
Acc dot_of(const A* x, const A* y, std::int64_t n) {
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += load(x[i]) * load(y[i]);
  return sum;
}

// out [Dh] = softmax(scale q K^T) V over `keys` rows, `row` elements apart. Returns the log of the
// denominator.
template <class A, class Acc>
Acc attend(const A* q, const A* k, const A* v, std::int64_t keys, std::int64_t row, std::int64_t Dh,
           double scale, A* out) {
  thread_local Scratch scratch;
  Acc* const weights = scratch.take<Acc>(keys + Dh);
  Acc* const sums = weights + keys;
  Acc max = -Acc(HUGE_VAL);
  for (std::int64_t j = 0; j < keys; ++j) {
    weights[j] = static_cast<Acc>(scale) * dot_of<A, Acc>(q, k + j * row, Dh);
    max = std::max(max, weights[j]);
  }
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < keys; ++j) {
    weights[j] = numerics::exp_fast(weights[j] - max);
    sum += weights[j];
  }
  std::fill_n(sums, Dh, Acc(0));
  for (std::int64_t j = 0; j < keys; ++j) {
    const A* const v_row = v + j * row;
#pragma omp simd
    for (std::int64_t d = 0; d < Dh; ++d) sums[d] += weights[j] * load(v_row[d]);
  }
  for (std::int64_t d = 0; d < Dh; ++d) store(out[d], sums[d] / sum);
  return numerics::log_sum_exp(max, sum);
}

}  // namespace

void attention_forward(const double* q, const double* k, const double* v, const std::int32_t* lengths,
                       const AttentionExtents& x, double* out, double* lse) {
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t unit = 0; unit < x.B * x.H; ++unit) {
    const std::int64_t b = unit / x.H, h = unit % x.H, hkv = h / (x.H / x.Hkv);
    const std::int64_t row_q = x.H * x.Dh, row_kv = x.Hkv * x.Dh, kv = b * x.S * row_kv + hkv * x.Dh;
    for (std::int64_t s = 0; s < x.S; ++s) {
      const std::int64_t at = (b * x.S + s) * row_q + h * x.Dh;
      double& row_lse = lse[unit * x.S + s];
      if (s < lengths[b]) {
        const std::int64_t keys = x.causal ? s + 1 : lengths[b];
        row_lse = attend<double, double>(q + at, k + kv, v + kv, keys, row_kv, x.Dh, x.scale, out + at);
      } else {
        std::fill_n(out + at, x.Dh, 0.0);
        row_lse = 0.0;
      }
    }
  }
}

void attention_backward(const double* d_out, const double* q, const double* k, const double* v,
                        const std::int32_t* lengths, const double* out, const double* lse,
                        const AttentionExtents& x, double* dq, double* dk, double* dv) {
  const std::int64_t Dh = x.Dh, row_q = x.H * Dh, row_kv = x.Hkv * Dh;
  std::fill_n(dq, x.B * x.S * row_q, 0.0);
  std::fill_n(dk, x.B * x.S * row_kv, 0.0);
  std::fill_n(dv, x.B * x.S * row_kv, 0.0);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t unit = 0; unit < x.B * x.Hkv; ++unit) {
    const std::int64_t b = unit / x.Hkv, hkv = unit % x.Hkv, G = x.H / x.Hkv;
    for (std::int64_t h = hkv * G; h < (hkv + 1) * G; ++h)
      for (std::int64_t s = 0; s < lengths[b]; ++s) {
        const std::int64_t at = (b * x.S + s) * row_q + h * Dh;
        const double dot = dot_of<double, double>(d_out + at, out + at, Dh);
        const std::int64_t keys = x.causal ? s + 1 : lengths[b];
        for (std::int64_t j = 0; j < keys; ++j) {
          const std::int64_t kv = (b * x.S + j) * row_kv + hkv * Dh;
          const double score = x.scale * dot_of<double, double>(q + at, k + kv, Dh);
          const double p = std::exp(score - lse[(b * x.H + h) * x.S + s]);
          const double ds = x.scale * p * (dot_of<double, double>(d_out + at, v + kv, Dh) - dot);
          for (std::int64_t d = 0; d < Dh; ++d) {
            dv[kv + d] += p * d_out[at + d];
            dq[at + d] += ds * k[kv + d];
            dk[kv + d] += ds * q[at + d];
          }
        }
      }
  }
}

template <class A, class Acc>
void attention_decode(const A* q, const A* cache_k, const A* cache_v, const std::int32_t* lengths,
                      const AttentionExtents& x, A* out) {
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t unit = 0; unit < x.B * x.H; ++unit) {
    const std::int64_t b = unit / x.H, h = unit % x.H, hkv = h / (x.H / x.Hkv);
    const std::int64_t row_kv = x.Hkv * x.Dh, kv = b * x.S * row_kv + hkv * x.Dh, at = unit * x.Dh;
    if (lengths[b] > 0)
      attend<A, Acc>(q + at, cache_k + kv, cache_v + kv, lengths[b], row_kv, x.Dh, x.scale, out + at);
    else
      std::fill_n(out + at, x.Dh, A(Acc(0)));
  }
}

template void attention_decode<float, float>(const float*, const float*, const float*, const std::int32_t*,
                                             const AttentionExtents&, float*);
template void attention_decode<BFloat16, float>(const BFloat16*, const BFloat16*, const BFloat16*,
                                                const std::int32_t*, const AttentionExtents&, BFloat16*);
template void attention_decode<double, double>(const double*, const double*, const double*,
                                               const std::int32_t*, const AttentionExtents&, double*);

}  // namespace moecollab::ops::cpu
