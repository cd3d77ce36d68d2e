#include "moecollab/ops/attention.hpp"

#include <cmath>

#include "ops/attention_reference.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

void run(const AttentionTensors& t, const Tensor& lengths, const AttentionOptions& options) {
  Stream stream;
  attention_forward(stream, t.q.view(), t.k.view(), t.v.view(), lengths.view(), options, t.out.view(),
                    t.lse.view());
  attention_backward(stream, t.d_out.view(), t.q.view(), t.k.view(), t.v.view(), lengths.view(), t.out.view(),
                     t.lse.view(), options, t.dq.view(), t.dk.view(), t.dv.view());
}

// Relative error of a softmax weight: its score is a sum of Dh products, its denominator a sum of up to S.
// The products that follow sum up to S * H / Hkv terms. bf16 rounds weights and their gradients, and `out`,
// once.
void check_against_definition(DType dtype, const AttentionSizes& z,
                              std::initializer_list<std::int32_t> lengths_in) {
  const Tensor lengths = ints(lengths_in);
  for (const bool causal : {true, false}) {
    const AttentionOptions options{causal, 1.0 / std::sqrt(static_cast<double>(z.Dh))};
    SCOPED_TRACE(testing::Message() << to_string(dtype) << " S " << z.S << " H " << z.H << "/" << z.Hkv
                                    << " Dh " << z.Dh << " causal " << causal);
    const AttentionTensors t = attention_inputs(dtype, z, lengths);
    run(t, lengths, options);
    const AttentionReference want(t, z, lengths, options);
    const double unit = eps_of(accumulator_of(dtype));
    const double n = static_cast<double>(z.S * z.H / z.Hkv), dh = static_cast<double>(z.Dh);
    const double eps =
        unit * ((dh + 2) * want.score_size + dh + 2 * n + 8) + (dtype == DType::bf16 ? 2 * kEpsBf16 : 0);
    expect_attention_close(t.out, want.out, want.out_size, eps, "out");
    expect_attention_close(t.dq, want.dq, want.dq_size, eps, "dq");
    expect_attention_close(t.dk, want.dk, want.dk_size, eps, "dk");
    expect_attention_close(t.dv, want.dv, want.dv_size, eps, "dv");
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
  const AttentionSizes z{2, 4, 4, 2, 3};
  const Tensor lengths = ints({4, 3});
  for (const bool causal : {true, false}) {
    const AttentionOptions options{causal, 0.7};
    AttentionTensors t = attention_inputs(DType::f64, z, lengths);
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
  const AttentionSizes z{2, 140, 2, 1, 8};
  const Tensor lengths = ints({130, 0});
  for (const DType dtype : kFloatTypes) {
    const AttentionTensors t = attention_inputs(dtype, z, lengths);
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
  const AttentionSizes z{1, 200, 1, 1, 16};
  const Tensor lengths = ints({200});
  const AttentionTensors t = attention_inputs(DType::f32, z, lengths);
  run(t, lengths, {true, 1e4});
  for (const Tensor* x : {&t.out, &t.lse, &t.dq, &t.dk, &t.dv})
    EXPECT_TRUE(std::isfinite(max_abs(x->view())));
}

// Decoding position s against a cache is row s of the causal forward pass.
TEST(Attention, DecodingAgreesWithTheForwardPass) {
  Stream stream;
  const AttentionSizes z{3, 40, 4, 2, 8};
  const Tensor lengths = ints({40, 17, 0});
  for (const DType dtype : kFloatTypes) {
    const AttentionTensors t = attention_inputs(dtype, z, lengths);
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
  const AttentionSizes z{3, 150, 4, 2, 16};
  const Tensor lengths = ints({150, 70, 0});
  for (const DType dtype : kFloatTypes)
    for (const bool causal : {true, false})
      expect_same_for_any_threads([&] {
        AttentionTensors t = attention_inputs(dtype, z, lengths);
        run(t, lengths, {causal, 0.25});
        std::vector<Tensor> out;
        for (Tensor* x : {&t.out, &t.lse, &t.dq, &t.dk, &t.dv}) out.push_back(std::move(*x));
        return out;
      });
}

TEST(Attention, TakesNoSequencesAndRejectsWhatDoesNotFit) {
  Stream stream;
  const Tensor none_lengths(DType::i32, {0});
  run(attention_inputs(DType::f32, {0, 8, 2, 1, 4}, none_lengths), none_lengths, {true, 1.0});
  const AttentionSizes z{1, 4, 3, 2, 4};
  const Tensor lengths = ints({4});
  EXPECT_THROW(run(attention_inputs(DType::f32, z, lengths), lengths, {true, 1.0}), ShapeError)
      << "3 heads on 2";
  const AttentionSizes good{1, 4, 2, 2, 4};
  const AttentionTensors t = attention_inputs(DType::f32, good, lengths);
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
