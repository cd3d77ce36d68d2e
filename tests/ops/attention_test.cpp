#include "moecollab/ops/attention.hpp"

#include <cmath>

#include "dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

struct Sizes {
  std::int64_t B, S, H, Hkv, Dh;
  Shape q() const { return {B, S, H, Dh}; }
  Shape kv() const { return {B, S, Hkv, Dh}; }
  Shape lse() const { return {B, H, S}; }
};

struct Tensors {
  Tensor q, k, v, d_out, out, lse, dq, dk, dv;
};

// Rows at or beyond a sequence's length hold NaN: nothing may read them.
Tensor padded(DType dtype, const Shape& shape, const Tensor& lengths, std::uint64_t stream) {
  Tensor t = random_tensor(dtype, shape, stream);
  const std::int64_t S = shape[1], width = shape[2] * shape[3];
  const TensorView rows = t.view().reshaped({shape[0] * S, width});
  for (std::int64_t b = 0; b < shape[0]; ++b)
    for (std::int64_t s = lengths.view().as<std::int32_t>()[b]; s < S; ++s)
      copy_convert(poisoned(dtype, {1, width}).view(), rows.rows(b * S + s, b * S + s + 1));
  return t;
}

Tensors inputs(DType dtype, const Sizes& z, const Tensor& lengths) {
  Tensors t;
  t.q = padded(dtype, z.q(), lengths, 1), t.k = padded(dtype, z.kv(), lengths, 2);
  t.v = padded(dtype, z.kv(), lengths, 3), t.d_out = padded(dtype, z.q(), lengths, 4);
  t.out = poisoned(dtype, z.q()), t.lse = poisoned(accumulator_of(dtype), z.lse());
  t.dq = poisoned(dtype, z.q()), t.dk = poisoned(dtype, z.kv()), t.dv = poisoned(dtype, z.kv());
  return t;
}

void run(const Tensors& t, const Tensor& lengths, const AttentionOptions& options) {
  Stream stream;
  attention_forward(stream, t.q.view(), t.k.view(), t.v.view(), lengths.view(), options, t.out.view(),
                    t.lse.view());
  attention_backward(stream, t.d_out.view(), t.q.view(), t.k.view(), t.v.view(), lengths.view(), t.out.view(),
                     t.lse.view(), options, t.dq.view(), t.dk.view(), t.dv.view());
}

// Softmax attention straight from its definition, with each result's condition beside it: the sum of the
// sizes of the terms that enter, which is what rounding errors are relative to.
struct Reference {
  std::vector<double> out, dq, dk, dv, out_size, dq_size, dk_size, dv_size;
  double score_size = 0.0;  // largest scale * sum |q k|

  Reference(const Tensors& t, const Sizes& z, const Tensor& lengths, const AttentionOptions& o) {
    const Tensor wq = converted(t.q.view(), DType::f64), wk = converted(t.k.view(), DType::f64);
    const Tensor wv = converted(t.v.view(), DType::f64), wd = converted(t.d_out.view(), DType::f64);
    const double *q = wq.view().as<double>(), *k = wk.view().as<double>(), *v = wv.view().as<double>();
    const double* d_out = wd.view().as<double>();
    for (auto* x : {&out, &dq, &out_size, &dq_size}) x->assign(static_cast<std::size_t>(z.q().numel()), 0.0);
    for (auto* x : {&dk, &dv, &dk_size, &dv_size}) x->assign(static_cast<std::size_t>(z.kv().numel()), 0.0);
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

void check_close(const Tensor& have, const std::vector<double>& want, const std::vector<double>& size,
                 double eps, const char* name) {
  const Tensor wide = converted(have.view(), DType::f64);
  for (std::size_t i = 0; i < want.size(); ++i)
    ASSERT_LE(std::fabs(wide.view().as<double>()[i] - want[i]),
              eps * size[i] + eps_of(have.dtype()) * std::fabs(want[i]))
        << name << " element " << i << ", wanted " << want[i] << ", got " << wide.view().as<double>()[i];
}

// Relative error of a softmax weight: its score is a sum of Dh products, its denominator a sum of up to S.
// The products that follow sum up to S * H / Hkv terms. bf16 rounds weights and their gradients, and `out`,
// once.
void check_against_definition(DType dtype, const Sizes& z, std::initializer_list<std::int32_t> lengths_in) {
  const Tensor lengths = ints(lengths_in);
  for (const bool causal : {true, false}) {
    const AttentionOptions options{causal, 1.0 / std::sqrt(static_cast<double>(z.Dh))};
    SCOPED_TRACE(testing::Message() << to_string(dtype) << " S " << z.S << " H " << z.H << "/" << z.Hkv
                                    << " Dh " << z.Dh << " causal " << causal);
    const Tensors t = inputs(dtype, z, lengths);
    run(t, lengths, options);
    const Reference want(t, z, lengths, options);
    const double unit = eps_of(accumulator_of(dtype));
    const double n = static_cast<double>(z.S * z.H / z.Hkv), dh = static_cast<double>(z.Dh);
    const double eps =
        unit * ((dh + 2) * want.score_size + dh + 2 * n + 8) + (dtype == DType::bf16 ? 2 * kEpsBf16 : 0);
    check_close(t.out, want.out, want.out_size, eps, "out");
    check_close(t.dq, want.dq, want.dq_size, eps, "dq");
    check_close(t.dk, want.dk, want.dk_size, eps, "dk");
    check_close(t.dv, want.dv, want.dv_size, eps, "dv");
  }
}

TEST(Attention, AgreesWithItsDefinition) {
  for (const DType dtype : kFloatTypes) {
    check_against_definition(dtype, {2, 7, 2, 2, 8}, {7, 4});
    check_against_definition(dtype, {4, 150, 4, 2, 16}, {150, 97, 0, 1});  // ragged tiles, shared keys
    check_against_definition(dtype, {1, 256, 3, 1, 32}, {256});            // whole tiles, one key head
    check_against_definition(dtype, {1, 300, 1, 1, 5}, {290});             // odd head size
  }
}

TEST(Attention, GradientsAgreeWithFiniteDifferences) {
  Stream stream;
  const Sizes z{2, 4, 4, 2, 3};
  const Tensor lengths = ints({4, 3});
  for (const bool causal : {true, false}) {
    const AttentionOptions options{causal, 0.7};
    Tensors t = inputs(DType::f64, z, lengths);
    // Finite differences step through every element, the padding included: it needs a value there.
    t.q = random_tensor(DType::f64, z.q(), 1), t.k = random_tensor(DType::f64, z.kv(), 2);
    t.v = random_tensor(DType::f64, z.kv(), 3), t.d_out = random_tensor(DType::f64, z.q(), 4);
    run(t, lengths, options);
    const Tensor dq = copy_of(t.dq.view()), dk = copy_of(t.dk.view()), dv = copy_of(t.dv.view());
    const auto loss = [&] {
      attention_forward(stream, t.q.view(), t.k.view(), t.v.view(), lengths.view(), options, t.out.view(),
                        t.lse.view());
      return dot(t.out.view(), t.d_out.view());
    };
    EXPECT_TRUE(gradient_matches(loss, t.q.view(), dq.view()));
    EXPECT_TRUE(gradient_matches(loss, t.k.view(), dk.view()));
    EXPECT_TRUE(gradient_matches(loss, t.v.view(), dv.view()));
  }
}

TEST(Attention, PaddingIsZeroEverywhere) {
  const Sizes z{2, 140, 2, 1, 8};
  const Tensor lengths = ints({130, 0});
  for (const DType dtype : kFloatTypes) {
    const Tensors t = inputs(dtype, z, lengths);
    run(t, lengths, {true, 0.3});
    for (const Tensor* x : {&t.out, &t.dq, &t.dk, &t.dv}) {
      const std::int64_t width = x->shape()[2] * x->shape()[3];
      const TensorView rows = x->view().reshaped({2 * 140, width});
      EXPECT_EQ(max_abs(rows.rows(130, 280)), 0.0);
      EXPECT_GT(max_abs(rows.rows(0, 130)), 0.0);
    }
  }
}

TEST(Attention, LargeScoresStayFinite) {
  const Sizes z{1, 200, 1, 1, 16};
  const Tensor lengths = ints({200});
  const Tensors t = inputs(DType::f32, z, lengths);
  run(t, lengths, {true, 1e4});
  for (const Tensor* x : {&t.out, &t.lse, &t.dq, &t.dk, &t.dv})
    EXPECT_TRUE(std::isfinite(max_abs(x->view())));
}

// Decoding position s against a cache is row s of the causal forward pass.
TEST(Attention, DecodingAgreesWithTheForwardPass) {
  Stream stream;
  const Sizes z{3, 40, 4, 2, 8};
  const Tensor lengths = ints({40, 17, 0});
  for (const DType dtype : kFloatTypes) {
    const Tensors t = inputs(dtype, z, lengths);
    run(t, lengths, {true, 0.35});
    const Tensor q(dtype, {z.B, 1, z.H, z.Dh}), out = poisoned(dtype, {z.B, 1, z.H, z.Dh});
    const Tensor want(dtype, {z.B, 1, z.H, z.Dh});
    for (std::int64_t b = 0; b < z.B; ++b) {
      const std::int64_t length = lengths.view().as<std::int32_t>()[b];
      if (length == 0) continue;
      const std::int64_t row = b * z.S + length - 1;
      const Shape flat{z.B * z.S, z.H * z.Dh}, few{z.B, z.H * z.Dh};
      copy_convert(t.q.view().reshaped(flat).rows(row, row + 1), q.view().reshaped(few).rows(b, b + 1));
      copy_convert(t.out.view().reshaped(flat).rows(row, row + 1), want.view().reshaped(few).rows(b, b + 1));
    }
    attention_decode(stream, q.view(), t.k.view(), t.v.view(), lengths.view(), 0.35, out.view());
    // Weights sum to one, so errors are relative to max|v|: scores of Dh products, sums of S; bf16 also
    // rounds the weights of the forward pass and both results.
    const double unit = eps_of(accumulator_of(dtype));
    const Tensor v = random_tensor(dtype, z.kv(), 3);
    const double bound =
        (unit * (10 * 8 + 2 * 40) + (dtype == DType::bf16 ? 2 * kEpsBf16 : 0)) * max_abs(v.view());
    EXPECT_LE(max_abs_difference(out.view(), want.view()), bound) << to_string(dtype);
  }
}

TEST(Attention, SameBitsForAnyThreads) {
  const Sizes z{3, 150, 4, 2, 16};
  const Tensor lengths = ints({150, 70, 0});
  for (const DType dtype : kFloatTypes)
    for (const bool causal : {true, false})
      expect_same_for_any_threads([&] {
        Tensors t = inputs(dtype, z, lengths);
        run(t, lengths, {causal, 0.25});
        std::vector<Tensor> out;
        for (Tensor* x : {&t.out, &t.lse, &t.dq, &t.dk, &t.dv}) out.push_back(std::move(*x));
        return out;
      });
}

TEST(Attention, TakesNoSequencesAndRejectsWhatDoesNotFit) {
  Stream stream;
  const Tensor none_lengths(DType::i32, {0});
  run(inputs(DType::f32, {0, 8, 2, 1, 4}, none_lengths), none_lengths, {true, 1.0});
  const Sizes z{1, 4, 3, 2, 4};
  const Tensor lengths = ints({4});
  EXPECT_THROW(run(inputs(DType::f32, z, lengths), lengths, {true, 1.0}), ShapeError) << "3 heads on 2";
  const Sizes good{1, 4, 2, 2, 4};
  const Tensors t = inputs(DType::f32, good, lengths);
  EXPECT_THROW(run(t, ints({5}), {true, 1.0}), ShapeError);
  EXPECT_THROW(run(t, ints({4, 4}), {true, 1.0}), ShapeError);
  EXPECT_THROW(attention_forward(stream, t.q.view(), t.k.view(), Tensor(DType::bf16, good.kv()).view(),
                                 lengths.view(), {}, t.out.view(), t.lse.view()),
               DTypeError);
  EXPECT_THROW(
      attention_decode(stream, t.q.view(), t.k.view(), t.v.view(), lengths.view(), 1.0, t.out.view()),
      ShapeError)
      << "one query per sequence";
}

}  // namespace
}  // namespace moecollab::ops
