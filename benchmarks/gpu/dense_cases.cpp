// What surrounds the experts; no goals.
#include <algorithm>
#include <cmath>

#include "harness.hpp"
#include "moecollab/core/device.hpp"
#include "moecollab/ops/adamw.hpp"
#include "moecollab/ops/attention.hpp"
#include "moecollab/ops/cross_entropy.hpp"
#include "moecollab/ops/rms_norm.hpp"

namespace moecollab::bench {
namespace {

Tensor filled(Bench& bench, const Shape& shape, std::int32_t value) {
  const Tensor host(DType::i32, shape);
  std::fill_n(host.view().as<std::int32_t>(), shape.numel(), value);
  Tensor out(DType::i32, shape, Device::cuda);
  copy(bench.stream(), host.view(), out.view());
  bench.stream().synchronize();
  return out;
}

// FLOPs of causal attention: half of 4 B H S^2 Dh, and 2.5 times that in backward.
void attention_case(Bench& bench, DType dtype) {
  const std::int64_t B = bench.tiny() ? 1 : 4, S = bench.tiny() ? 9 : 4096, H = bench.tiny() ? 2 : 32,
                     Hkv = bench.tiny() ? 1 : 8, Dh = bench.tiny() ? 8 : 128;
  const Tensor q = bench.normal(dtype, {B, S, H, Dh}), k = bench.normal(dtype, {B, S, Hkv, Dh}),
               v = bench.normal(dtype, {B, S, Hkv, Dh}), d_out = bench.normal(dtype, {B, S, H, Dh});
  const Tensor out = Bench::zeros(dtype, q.shape()), dq = Bench::zeros(dtype, q.shape()),
               dk = Bench::zeros(dtype, k.shape()), dv = Bench::zeros(dtype, k.shape());
  const Tensor lse = Bench::zeros(DType::f32, {B, H, S});
  const Tensor lengths = filled(bench, {B}, static_cast<std::int32_t>(S));
  const ops::AttentionOptions options{true, 1.0 / std::sqrt(static_cast<double>(Dh))};
  Stream& s = bench.stream();
  const std::vector<Timing> t =
      bench.time({[&] {
                    ops::attention_forward(s, q.view(), k.view(), v.view(), lengths.view(), options,
                                           out.view(), lse.view());
                  },
                  [&] {
                    ops::attention_backward(s, d_out.view(), q.view(), k.view(), v.view(), lengths.view(),
                                            out.view(), lse.view(), options, dq.view(), dk.view(), dv.view());
                  }});
  const double gflop = giga(2.0 * static_cast<double>(B * H * S) * static_cast<double>(S * Dh));
  const std::string shape = text("B", B) + text(" S", S) + text(" H", H) + text("/", Hkv) + text(" Dh", Dh);
  bench.print({"attention_forward", "dense", dtype, shape, t[0], gflop, 0, ""});
  bench.print({"attention_backward", "dense", dtype, shape, t[1], 2.5 * gflop, 0, ""});
}

void rms_norm_case(Bench& bench, DType dtype) {
  const std::int64_t T = bench.tiny() ? 7 : 32768, D = bench.tiny() ? 16 : 4096;
  const Tensor x = bench.normal(dtype, {T, D}), dy = bench.normal(dtype, {T, D}),
               weight = bench.normal(dtype, {D});
  const Tensor y = Bench::zeros(dtype, {T, D}), rstd = Bench::zeros(DType::f32, {T}),
               d_weight = Bench::zeros(DType::f32, {D});
  Stream& s = bench.stream();
  const std::vector<Timing> t =
      bench.time({[&] { ops::rms_norm_forward(s, x.view(), weight.view(), 1e-6, y.view(), rstd.view()); },
                  [&] {
                    ops::rms_norm_backward(s, dy.view(), x.view(), weight.view(), rstd.view(), y.view(),
                                           d_weight.view());
                  }});
  const double bytes = giga(static_cast<double>(x.size_bytes()));
  const std::string shape = text("T", T) + text(" D", D);
  bench.print({"rms_norm_forward", "dense", dtype, shape, t[0], 0, 2 * bytes, "2 T D A"});
  bench.print({"rms_norm_backward", "dense", dtype, shape, t[1], 0, 3 * bytes, "3 T D A"});
}

void cross_entropy_case(Bench& bench, DType dtype) {
  const std::int64_t T = bench.tiny() ? 7 : 8192, V = bench.tiny() ? 16 : 65536;
  const Tensor logits = bench.normal(dtype, {T, V}), d_logits = Bench::zeros(dtype, {T, V});
  const Tensor targets = filled(bench, {T}, 3), loss = Bench::zeros(DType::f32, {T});
  const Timing timing = bench.time([&] {
    ops::cross_entropy_forward_backward(bench.stream(), logits.view(), targets.view(), 1e-4, loss.view(),
                                        d_logits.view());
  });
  bench.print({"cross_entropy_forward_backward", "dense", dtype, text("T", T) + text(" V", V), timing, 0,
               giga(2.0 * static_cast<double>(logits.size_bytes())), "2 T V A"});
}

void adamw_case(Bench& bench) {
  const std::int64_t n = bench.tiny() ? 100 : std::int64_t{1} << 27;
  const Tensor grad = bench.normal(DType::f32, {n}, 1e-3), master = bench.normal(DType::f32, {n}, 0.02);
  const Tensor exp_avg = Bench::zeros(DType::f32, {n}), exp_avg_sq = Bench::zeros(DType::f32, {n});
  const Tensor value = Bench::zeros(DType::bf16, {n});
  const ops::AdamWRange range{grad.view(),       master.view(), exp_avg.view(),
                              exp_avg_sq.view(), value.view(),  0.1};
  const Timing timing = bench.time([&] {
    ops::adamw_update(bench.stream(), {&range, 1}, ops::AdamWOptions{});
  });
  bench.print({"adamw_update", "dense", DType::bf16, text("n", n), timing, 0,
               giga(30.0 * static_cast<double>(n)), "30 n"});
}

}  // namespace

void dense_cases(Bench& bench) {
  bench.run("attention bf16", [&] { attention_case(bench, DType::bf16); });
  bench.run("rms_norm bf16", [&] { rms_norm_case(bench, DType::bf16); });
  bench.run("cross_entropy bf16", [&] { cross_entropy_case(bench, DType::bf16); });
  bench.run("adamw", [&] { adamw_case(bench); });
}

}  // namespace moecollab::bench
