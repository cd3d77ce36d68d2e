// Attention on the device against its definition in f64: cuDNN's graphs (bf16, widths that are multiples of
// 8, up to 128), our own tiles (everything else), and decoding.
#include <cmath>

#include "cuda/device_support.hpp"
#include "moecollab/ops/attention.hpp"
#include "ops/attention_reference.hpp"
#include "ops/cuda/attention.hpp"
#include "ops/cuda/attention_engines.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

class CudaAttention : public OnDevice {};

struct Case {
  AttentionSizes sizes;
  std::vector<std::int32_t> lengths;
};
const Case kCases[] = {
    {{2, 7, 2, 2, 8}, {7, 4}},
    {{2, 150, 2, 1, 16}, {150, 97}},  // ragged tiles, shared keys
    {{4, 20, 4, 2, 16}, {20, 17, 0, 1}},
    {{1, 128, 2, 2, 32}, {128}},   // whole tiles
    {{2, 70, 2, 1, 6}, {61, 64}},  // no engine: the width
    {{2, 5, 2, 1, 2}, {5, 3}},
    {{2, 66, 1, 1, 64}, {66, 65}},
    {{1, 65, 1, 1, 136}, {65}},  // two parts of columns
    {{1, 1, 1, 1, 16}, {1}},
    {{0, 8, 2, 1, 16}, {}},
};

Tensor lengths_of(const Case& c) {
  Tensor t(DType::i32, {static_cast<std::int64_t>(c.lengths.size())});
  std::copy(c.lengths.begin(), c.lengths.end(), t.view().as<std::int32_t>());
  return t;
}
// cuDNN multiplies what lies behind the lengths with zero; our own kernels do not read it.
double padding_of(DType dtype, const AttentionSizes& z) {
  const bool own = dtype == DType::f32 || z.S == 1 || z.Dh % 8 != 0 || z.Dh > 128;
  return own ? std::numeric_limits<double>::quiet_NaN() : 30.0;
}
AttentionTensors on_device_of(const AttentionTensors& t) {
  return {to_device(t.q.view()),     to_device(t.k.view()),   to_device(t.v.view()),
          to_device(t.d_out.view()), to_device(t.out.view()), to_device(t.lse.view()),
          to_device(t.dq.view()),    to_device(t.dk.view()),  to_device(t.dv.view())};
}

// Both passes on the device; results on the host. `most_bytes`: straight to cuDNN, with this limit to a
// piece.
AttentionTensors run(const AttentionTensors& host, const Tensor& host_lengths,
                     const AttentionOptions& options, std::int64_t most_bytes = 0) {
  Stream& stream = device_stream();
  AttentionTensors t = on_device_of(host);
  const Tensor lengths = to_device(host_lengths.view());
  attention_forward(stream, t.q.view(), t.k.view(), t.v.view(), lengths.view(), options, t.out.view(),
                    t.lse.view());
  if (most_bytes == 0) {
    attention_backward(stream, t.d_out.view(), t.q.view(), t.k.view(), t.v.view(), lengths.view(),
                       t.out.view(), t.lse.view(), options, t.dq.view(), t.dk.view(), t.dv.view());
  } else {
    const AttentionExtents x{t.k.shape()[0], t.k.shape()[1], t.q.shape()[2], t.k.shape()[2],
                             t.k.shape()[3], options.causal, options.scale};
    const auto in = [](const Tensor& tensor) { return tensor.view().as<BFloat16>(); };
    const auto* const valid = lengths.view().as<std::int32_t>();
    EXPECT_TRUE(cuda::engine_attention_backward(stream, in(t.d_out), in(t.q), in(t.k), in(t.v), valid,
                                                in(t.out), t.lse.view().as<float>(), x, in(t.dq), in(t.dk),
                                                in(t.dv), most_bytes));
    for (const Tensor* d : {&t.dq, &t.dk, &t.dv})  // the caller's to clear
      cuda::clear_padding_rows(stream, valid, x.B, x.S, d->shape()[2] * x.Dh, in(*d));
  }
  for (Tensor* x : {&t.q, &t.k, &t.v, &t.d_out, &t.out, &t.lse, &t.dq, &t.dk, &t.dv}) *x = to_host(x->view());
  return t;
}

// Errors as in tests/ops/attention_test.cpp: a score is a sum of Dh products, a denominator one of up to S,
// the products that follow sum up to S * H / Hkv terms, all in f32. bf16 rounds weights, their gradients,
// `out` and, with shared keys, the gradients of each query head.
void check(const AttentionTensors& have, DType dtype, const Case& c, const Tensor& lengths,
           const AttentionOptions& options) {
  const AttentionSizes& z = c.sizes;
  const AttentionReference want(have, z, lengths, options);
  const double n = static_cast<double>(z.S * z.H / z.Hkv), dh = static_cast<double>(z.Dh);
  const double score_error = kEpsF32 * ((dh + 2) * want.score_size + dh + 2 * n + 8);
  const double eps = score_error + (dtype == DType::bf16 ? 2 * kEpsBf16 : 0);
  expect_attention_close(have.out, want.out, want.out_size, eps, "out");
  expect_attention_close(have.dq, want.dq, want.dq_size, eps, "dq");
  expect_attention_close(have.dk, want.dk, want.dk_size, eps, "dk");
  expect_attention_close(have.dv, want.dv, want.dv_size, eps, "dv");
  const std::vector<double> one(want.lse.size(), 1.0);
  expect_attention_close(have.lse, want.lse, one, 2 * score_error, "lse");
}

TEST_F(CudaAttention, AgreesWithItsDefinitionAndRepeatsItsBits) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Case& c : kCases)
      for (const bool causal : {true, false}) {
        const AttentionSizes& z = c.sizes;
        SCOPED_TRACE(testing::Message() << to_string(dtype) << " B " << z.B << " S " << z.S << " H " << z.H
                                        << "/" << z.Hkv << " Dh " << z.Dh << " causal " << causal);
        const Tensor lengths = lengths_of(c);
        const AttentionOptions options{causal, 1.0 / std::sqrt(static_cast<double>(z.Dh))};
        const AttentionTensors in = attention_inputs(dtype, z, lengths, padding_of(dtype, z));
        const AttentionTensors have = run(in, lengths, options);
        check(have, dtype, c, lengths, options);
        if (z.S > 40) continue;
        const AttentionTensors again = run(in, lengths, options);
        for (const auto member : {&AttentionTensors::out, &AttentionTensors::lse, &AttentionTensors::dq,
                                  &AttentionTensors::dk, &AttentionTensors::dv})
          EXPECT_TRUE(same_bits((have.*member).view(), (again.*member).view()));
      }
}

// Large batches and long sequences go to cuDNN in pieces: of sequences, and of the key/value heads of one.
TEST_F(CudaAttention, PiecesAgreeWithTheDefinition) {
  if (!cuda::built_with_attention_engines()) GTEST_SKIP() << "built without cuDNN";
  const Case c{{3, 40, 6, 3, 8}, {40, 17, 33}};
  const Tensor lengths = lengths_of(c);
  const AttentionOptions options{true, 0.4};
  const AttentionTensors in = attention_inputs(DType::bf16, c.sizes, lengths, 30.0);
  const std::int64_t head_bytes = 2 * 128 * 128 * 2;  // of a group of two query heads
  for (const std::int64_t heads : {1, 2, 3, 6}) {
    SCOPED_TRACE(heads);
    check(run(in, lengths, options, heads * head_bytes), DType::bf16, c, lengths, options);
  }
}

TEST_F(CudaAttention, LargeScoresStayFinite) {
  const Case c{{1, 80, 1, 1, 16}, {80}};
  const Tensor lengths = lengths_of(c);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const AttentionTensors t = run(attention_inputs(dtype, c.sizes, lengths), lengths, {true, 1e4});
    for (const Tensor* x : {&t.out, &t.lse, &t.dq, &t.dk, &t.dv})
      EXPECT_TRUE(std::isfinite(max_abs(x->view()))) << to_string(dtype);
  }
}

// Scores of Dh products, sums of up to Smax; weights sum to one, so errors are relative to max|v|. bf16
// rounds the result.
TEST_F(CudaAttention, DecodingAgreesWithTheHost) {
  const Case cases[] = {{{3, 40, 4, 2, 8}, {40, 17, 0}},
                        {{2, 333, 2, 1, 64}, {333, 1}},
                        {{2, 9, 3, 3, 2}, {9, 2}},
                        {{1, 33, 2, 2, 136}, {33}},
                        {{0, 4, 1, 1, 4}, {}}};
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Case& c : cases) {
      const AttentionSizes& z = c.sizes;
      SCOPED_TRACE(testing::Message() << to_string(dtype) << " S " << z.S << " Dh " << z.Dh);
      const double scale = 1.0 / std::sqrt(static_cast<double>(z.Dh));
      const Tensor lengths = lengths_of(c), device_lengths = to_device(lengths.view());
      const double nan = std::numeric_limits<double>::quiet_NaN();
      const Shape few{z.B, 1, z.H, z.Dh};
      const Tensor q = random_tensor(dtype, few, 1), k = padded(dtype, z.kv(), lengths, 2, nan);
      const Tensor v = padded(dtype, z.kv(), lengths, 3, nan);
      const Tensor want(DType::f64, few), out = to_device(poisoned(dtype, few).view());
      Stream host;
      attention_decode(host, converted(q.view(), DType::f64).view(), converted(k.view(), DType::f64).view(),
                       converted(v.view(), DType::f64).view(), lengths.view(), scale, want.view());
      attention_decode(device_stream(), to_device(q.view()).view(), to_device(k.view()).view(),
                       to_device(v.view()).view(), device_lengths.view(), scale, out.view());
      device_stream().synchronize();
      const double size = max_abs(random_tensor(dtype, z.kv(), 3).view());
      const double score_size = scale * static_cast<double>(z.Dh) * 16;
      EXPECT_TRUE(close_to(
          out.view(), want.view(),
          kEpsF32 * (static_cast<double>(z.Dh + 2) * score_size + 2 * static_cast<double>(z.S)) * size,
          eps_of(dtype)));
    }
}

TEST_F(CudaAttention, RefusesTensorsOfAnotherDevice) {
  const Case c{{1, 4, 2, 2, 8}, {4}};
  const Tensor lengths = lengths_of(c);
  const AttentionTensors host = attention_inputs(DType::f32, c.sizes, lengths), device = on_device_of(host);
  EXPECT_THROW(attention_forward(device_stream(), device.q.view(), host.k.view(), device.v.view(),
                                 to_device(lengths.view()).view(), {}, device.out.view(), device.lse.view()),
               InternalError);
}

}  // namespace
}  // namespace moecollab::ops
