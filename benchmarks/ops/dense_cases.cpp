#include "harness.hpp"
#include "moecollab/ops/adamw.hpp"
#include "moecollab/ops/attention.hpp"
#include "moecollab/ops/cross_entropy.hpp"
#include "moecollab/ops/elementwise.hpp"
#include "moecollab/ops/linear.hpp"
#include "moecollab/ops/rms_norm.hpp"
#include "moecollab/ops/rope.hpp"
#include "moecollab/ops/swiglu.hpp"

namespace moecollab::bench {
namespace {

double giga(double x) { return x * 1e-9; }

void linear_case(Stream& stream, DType dtype, std::int64_t T, std::int64_t K, std::int64_t N, Rows& rows) {
  const Tensor x = normal(dtype, {T, K}, 1), w = normal(dtype, {N, K}, 2), y(dtype, {T, N});
  const Tensor dx(dtype, {T, K}), dw(DType::f32, {N, K});
  const std::string shape = text("T", T) + text("K", K) + text("N", N);
  const double gflop = giga(2.0 * static_cast<double>(T * K) * static_cast<double>(N));
  const double bytes = giga(static_cast<double>(x.size_bytes() + w.size_bytes() + y.size_bytes()));
  rows.push_back({"linear_forward", shape, dtype,
                  best_ms([&] { ops::linear_forward(stream, x.view(), w.view(), y.view()); }), gflop, bytes});
  rows.push_back({"linear_backward_input", shape, dtype,
                  best_ms([&] { ops::linear_backward_input(stream, y.view(), w.view(), dx.view()); }), gflop,
                  bytes});
  rows.push_back({"linear_backward_weight", shape, dtype,
                  best_ms([&] { ops::linear_backward_weight(stream, y.view(), x.view(), dw.view()); }), gflop,
                  giga(static_cast<double>(x.size_bytes() + y.size_bytes() + 2 * dw.size_bytes()))});
}

void attention_case(Stream& stream, DType dtype, std::int64_t B, std::int64_t S, std::int64_t H,
                    std::int64_t Hkv, std::int64_t Dh, Rows& rows) {
  const Tensor q = normal(dtype, {B, S, H, Dh}, 1), k = normal(dtype, {B, S, Hkv, Dh}, 2);
  const Tensor v = normal(dtype, {B, S, Hkv, Dh}, 3), d_out = normal(dtype, {B, S, H, Dh}, 4);
  const Tensor out(dtype, {B, S, H, Dh}), lse(DType::f32, {B, H, S}), lengths(DType::i32, {B});
  const Tensor dq(dtype, {B, S, H, Dh}), dk(dtype, {B, S, Hkv, Dh}), dv(dtype, {B, S, Hkv, Dh});
  for (std::int64_t b = 0; b < B; ++b) lengths.view().as<std::int32_t>()[b] = static_cast<std::int32_t>(S);
  const ops::AttentionOptions options{true, 0.125};
  const std::string shape = text("B", B) + text("S", S) + text("H", H) + text("Hkv", Hkv) + text("Dh", Dh);
  // Two products over the lower triangle forward, five backward.
  const double pairs = static_cast<double>(B * H) * static_cast<double>(S * (S + 1)) / 2;
  const double product = giga(2.0 * pairs * static_cast<double>(Dh));
  rows.push_back({"attention_forward", shape, dtype, best_ms([&] {
                    ops::attention_forward(stream, q.view(), k.view(), v.view(), lengths.view(), options,
                                           out.view(), lse.view());
                  }),
                  2 * product, giga(static_cast<double>(2 * (q.size_bytes() + k.size_bytes())))});
  rows.push_back({"attention_backward", shape, dtype, best_ms([&] {
                    ops::attention_backward(stream, d_out.view(), q.view(), k.view(), v.view(),
                                            lengths.view(), out.view(), lse.view(), options, dq.view(),
                                            dk.view(), dv.view());
                  }),
                  5 * product, giga(static_cast<double>(4 * (q.size_bytes() + k.size_bytes())))});
}

}  // namespace

Limits measure_limits(Stream& stream) {
  Limits limits;
  constexpr std::int64_t kSide = 2048, kCopy = std::int64_t{1} << 26;
  const double gflop = giga(2.0 * static_cast<double>(kSide * kSide) * static_cast<double>(kSide));
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor a = normal(dtype, {kSide, kSide}, 1), b = normal(dtype, {kSide, kSide}, 2),
                 c(dtype, {kSide, kSide});
    const double rate =
        gflop / best_ms([&] { ops::linear_forward(stream, a.view(), b.view(), c.view()); }) * 1e3;
    (dtype == DType::f32 ? limits.f32_gflop_per_s : limits.bf16_gflop_per_s) = rate;
  }
  const Tensor from = normal(DType::f32, {kCopy}, 1), to(DType::f32, {kCopy});
  limits.copy_gb_per_s =
      giga(8.0 * kCopy) / best_ms([&] { ops::cast(stream, from.view(), to.view()); }) * 1e3;
  return limits;
}

void dense_cases(Stream& stream, DType dtype, Rows& rows) {
  linear_case(stream, dtype, 2048, 256, 256, rows);
  linear_case(stream, dtype, 2048, 512, 1536, rows);
  linear_case(stream, dtype, 512, 128, 128, rows);
  linear_case(stream, dtype, 1024, 256, 8192, rows);
  attention_case(stream, dtype, 8, 256, 4, 2, 64, rows);
  attention_case(stream, dtype, 4, 512, 8, 4, 64, rows);
  attention_case(stream, dtype, 1, 2048, 8, 2, 64, rows);

  constexpr std::int64_t T = 16384, D = 512, V = 8192, N = std::int64_t{1} << 23;
  const Tensor x = normal(dtype, {T, D}, 1), w = normal(dtype, {D}, 2), y(dtype, {T, D}), dx(dtype, {T, D});
  const Tensor rstd(DType::f32, {T}), dw(DType::f32, {D});
  const double bytes = static_cast<double>(x.size_bytes());
  const std::string shape = text("T", T) + text("D", D);
  rows.push_back({"rms_norm_forward", shape, dtype, best_ms([&] {
                    ops::rms_norm_forward(stream, x.view(), w.view(), 1e-5, y.view(), rstd.view());
                  }),
                  0, giga(2 * bytes)});
  rows.push_back({"rms_norm_backward", shape, dtype, best_ms([&] {
                    ops::rms_norm_backward(stream, y.view(), x.view(), w.view(), rstd.view(), dx.view(),
                                           dw.view());
                  }),
                  0, giga(3 * bytes)});
  rows.push_back({"swiglu_forward", shape, dtype,
                  best_ms([&] { ops::swiglu_forward(stream, x.view(), y.view(), dx.view()); }), 0,
                  giga(3 * bytes)});
  const Tensor positions(DType::i32, {T});
  for (std::int64_t t = 0; t < T; ++t)
    positions.view().as<std::int32_t>()[t] = static_cast<std::int32_t>(t % 512);
  rows.push_back({"rope_forward", shape, dtype, best_ms([&] {
                    ops::rope_forward(stream, positions.view(), 1e4, dx.view().reshaped({T, 8, 64}));
                  }),
                  0, giga(2 * bytes)});

  const Tensor logits = normal(dtype, {1024, V}, 3), targets(DType::i32, {1024}), loss(DType::f32, {1024});
  const Tensor d_logits(dtype, {1024, V});
  rows.push_back({"cross_entropy_forward_backward", text("T", 1024) + text("V", V), dtype, best_ms([&] {
                    ops::cross_entropy_forward_backward(stream, logits.view(), targets.view(), 1e-3,
                                                        loss.view(), d_logits.view());
                  }),
                  0, giga(2.0 * static_cast<double>(logits.size_bytes()))});

  const Tensor grad = normal(DType::f32, {N}, 4), master = normal(DType::f32, {N}, 5), m(DType::f32, {N});
  const Tensor v(DType::f32, {N}), value(DType::bf16, {N});
  const bool rounds = dtype == DType::bf16;
  const ops::AdamWRange range{grad.view(), master.view(), m.view(), v.view(),
                              rounds ? value.view() : TensorView{}};
  rows.push_back({"adamw_update", text("n", N), dtype, best_ms([&] {
                    ops::adamw_update(stream, {&range, 1}, {});
                  }),
                  0, giga((rounds ? 30.0 : 28.0) * N)});
}

}  // namespace moecollab::bench
