// Attention straight from its definition, and inputs with padding.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "moecollab/ops/attention.hpp"
#include "ops/dense_support.hpp"

namespace moecollab::test {

struct AttentionSizes {
  std::int64_t B, S, H, Hkv, Dh;
  Shape q() const { return {B, S, H, Dh}; }
  Shape kv() const { return {B, S, Hkv, Dh}; }
  Shape lse() const { return {B, H, S}; }
};

struct AttentionTensors {
  Tensor q, k, v, d_out, out, lse, dq, dk, dv;
};

// Rows at or beyond a sequence's length hold `padding`: with NaN, nothing may read them.
inline Tensor padded(DType dtype, const Shape& shape, const Tensor& lengths, std::uint64_t stream,
                     double padding) {
  Tensor t = random_tensor(dtype, shape, stream);
  const std::int64_t S = shape[1], width = shape[2] * shape[3];
  const TensorView rows = t.view().reshaped({shape[0] * S, width});
  for (std::int64_t b = 0; b < shape[0]; ++b)
    for (std::int64_t s = lengths.view().as<std::int32_t>()[b]; s < S; ++s)
      copy_convert(filled(dtype, {1, width}, padding).view(), rows.rows(b * S + s, b * S + s + 1));
  return t;
}

inline AttentionTensors attention_inputs(DType dtype, const AttentionSizes& z, const Tensor& lengths,
                                         double padding = std::numeric_limits<double>::quiet_NaN()) {
  AttentionTensors t;
  t.q = padded(dtype, z.q(), lengths, 1, padding), t.k = padded(dtype, z.kv(), lengths, 2, padding);
  t.v = padded(dtype, z.kv(), lengths, 3, padding), t.d_out = padded(dtype, z.q(), lengths, 4, padding);
  t.out = poisoned(dtype, z.q()), t.lse = poisoned(accumulator_of(dtype), z.lse());
  t.dq = poisoned(dtype, z.q()), t.dk = poisoned(dtype, z.kv()), t.dv = poisoned(dtype, z.kv());
  return t;
}

// Softmax attention straight from its definition, with each result's condition beside it: the sum of the
// sizes of the terms that enter, which is what rounding errors are relative to.
struct AttentionReference {
  std::vector<double> lse, out, dq, dk, dv, out_size, dq_size, dk_size, dv_size;
  double score_size = 0.0;  // largest scale * sum |q k|

  AttentionReference(const AttentionTensors& t, const AttentionSizes& z, const Tensor& lengths,
                     const ops::AttentionOptions& o) {
    const Tensor wq = converted(t.q.view(), DType::f64), wk = converted(t.k.view(), DType::f64);
    const Tensor wv = converted(t.v.view(), DType::f64), wd = converted(t.d_out.view(), DType::f64);
    const double *q = wq.view().as<double>(), *k = wk.view().as<double>(), *v = wv.view().as<double>();
    const double* d_out = wd.view().as<double>();
    for (auto* x : {&out, &dq, &out_size, &dq_size}) x->assign(static_cast<std::size_t>(z.q().numel()), 0.0);
    for (auto* x : {&dk, &dv, &dk_size, &dv_size}) x->assign(static_cast<std::size_t>(z.kv().numel()), 0.0);
    lse.assign(static_cast<std::size_t>(z.lse().numel()), 0.0);
    for (std::int64_t b = 0; b < z.B; ++b)
      for (std::int64_t h = 0; h < z.H; ++h)
        for (std::int64_t s = 0; s < lengths.view().as<std::int32_t>()[b]; ++s) {
          const std::int64_t keys = o.causal ? s + 1 : lengths.view().as<std::int32_t>()[b];
          const std::int64_t at = ((b * z.S + s) * z.H + h) * z.Dh;
          const auto kv = [&](std::int64_t j) { return ((b * z.S + j) * z.Hkv + h / (z.H / z.Hkv)) * z.Dh; };
          std::vector<double> p, dp, dp_size;
          double total = 0.0;
          for (std::int64_t j = 0; j < keys; ++j) {
            double score = 0.0, size = 0.0, d = 0.0, d_size = 0.0;
            for (std::int64_t i = 0; i < z.Dh; ++i) {
              score += o.scale * q[at + i] * k[kv(j) + i],
                  size += std::fabs(o.scale * q[at + i] * k[kv(j) + i]);
              d += d_out[at + i] * v[kv(j) + i], d_size += std::fabs(d_out[at + i] * v[kv(j) + i]);
            }
            p.push_back(std::exp(score)), dp.push_back(d), dp_size.push_back(d_size);
            total += p.back();
            score_size = std::max(score_size, size);
          }
          lse[static_cast<std::size_t>((b * z.H + h) * z.S + s)] = std::log(total);
          double mean = 0.0, mean_size = 0.0;
          for (std::size_t j = 0; j < p.size(); ++j) {
            p[j] /= total;
            mean += p[j] * dp[j], mean_size += p[j] * dp_size[j];
          }
          for (std::int64_t j = 0; j < keys; ++j) {
            const auto jj = static_cast<std::size_t>(j);
            const double ds = o.scale * p[jj] * (dp[jj] - mean);
            const double ds_size = std::fabs(o.scale) * p[jj] * (dp_size[jj] + mean_size);
            for (std::int64_t i = 0; i < z.Dh; ++i) {
              const auto x = static_cast<std::size_t>(at + i), y = static_cast<std::size_t>(kv(j) + i);
              out[x] += p[jj] * v[y], out_size[x] += p[jj] * std::fabs(v[y]);
              dq[x] += ds * k[y], dq_size[x] += ds_size * std::fabs(k[y]);
              dk[y] += ds * q[x], dk_size[y] += ds_size * std::fabs(q[x]);
              dv[y] += p[jj] * d_out[x], dv_size[y] += p[jj] * std::fabs(d_out[x]);
            }
          }
        }
  }
};

inline void expect_attention_close(const Tensor& have, const std::vector<double>& want,
                                   const std::vector<double>& size, double eps, const char* name) {
  const Tensor wide = converted(have.view(), DType::f64);
  for (std::size_t i = 0; i < want.size(); ++i)
    ASSERT_LE(std::fabs(wide.view().as<double>()[i] - want[i]),
              eps * size[i] + eps_of(have.dtype()) * std::fabs(want[i]))
        << name << " element " << i << ", wanted " << want[i] << ", got " << wide.view().as<double>()[i];
}

}  // namespace moecollab::test
