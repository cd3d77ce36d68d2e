// One layer of experts on one device, gate to combined rows and back, and how much of its time is not that of
// the experts. Without the host's reading of the counts, which the layer of nn waits for.
#include <numeric>

#include "experts_cases.hpp"
#include "moecollab/core/device.hpp"
#include "moecollab/ops/elementwise.hpp"
#include "moecollab/ops/linear.hpp"
#include "moecollab/ops/permute.hpp"
#include "moecollab/ops/route_top_k.hpp"
#include "moecollab/ops/router_logits.hpp"

namespace moecollab::bench {
namespace {

struct Extents {
  std::int64_t T, D, F, E, K;
};

struct Layer {
  Bench& bench;
  Extents e;
  DType dtype;
  ops::RouterOptions options{e.K};
  ops::BalanceOptions balance{0.01, 0.001, 0.0, 0.0};
  std::vector<std::int32_t> key = std::vector<std::int32_t>(static_cast<std::size_t>(e.E));
  Shape rows_shape{e.T * e.K, e.D};
  Tensor x = bench.normal(dtype, {e.T, e.D}), dy = bench.normal(dtype, {e.T, e.D});
  Tensor y = Bench::zeros(dtype, {e.T, e.D}), dx = Bench::zeros(dtype, {e.T, e.D});
  Tensor gate = bench.normal(DType::f32, {e.E, e.D}, 0.02), bias = Bench::zeros(DType::f32, {e.E});
  Tensor d_gate = Bench::zeros(DType::f32, {e.E, e.D}), d_bias = Bench::zeros(DType::f32, {e.E});
  Tensor logits = Bench::zeros(DType::f32, {e.T, e.E}), d_logits = Bench::zeros(DType::f32, {e.T, e.E});
  Tensor probs = Bench::zeros(DType::f32, {e.T, e.E}), lse = Bench::zeros(DType::f32, {e.T});
  Tensor picks = Bench::zeros(DType::i32, {e.T, e.K}), weights = Bench::zeros(DType::f32, {e.T, e.K});
  Tensor d_weights = Bench::zeros(DType::f32, {e.T, e.K}), sums = Bench::zeros(DType::f64, {2 * e.E + 2});
  Tensor order = Bench::zeros(DType::i32, {e.T * e.K}), position = Bench::zeros(DType::i32, {e.T, e.K});
  Tensor counts = Bench::zeros(DType::i64, {e.E});
  Tensor packed = Bench::zeros(dtype, rows_shape), outs = Bench::zeros(dtype, rows_shape);
  Tensor d_outs = Bench::zeros(dtype, rows_shape), d_packed = Bench::zeros(dtype, rows_shape);
  Tensor wide = Bench::zeros(DType::f32, {e.T, e.D}), narrow = Bench::zeros(dtype, {e.T, e.D});

  Layer(Bench& bench_in, const Extents& extents, DType dtype_in)
      : bench(bench_in), e(extents), dtype(dtype_in) {
    std::iota(key.begin(), key.end(), 0);
  }

  void before_experts() {
    Stream& s = bench.stream();
    ops::router_logits_forward(s, x.view(), gate.view(), bias.view(), logits.view());
    ops::route_top_k_forward(s, logits.view(), {}, {}, options, picks.view(), weights.view(), probs.view(),
                             lse.view());
    ops::fill_zero(s, sums.view());
    ops::routing_sums(s, picks.view(), probs.view(), lse.view(), {}, sums.view());
    ops::sort_picks(s, picks.view(), key, 0, {}, order.view(), position.view(), counts.view());
    ops::gather_rows(s, x.view(), order.view(), e.K, packed.view());
  }
  void forward(Experts& experts) {
    before_experts();
    experts.forward(bench, packed.view(), outs.view());
    ops::combine_rows_forward(bench.stream(), outs.view(), position.view(), weights.view(), y.view());
  }
  void backward(Experts& experts) {
    Stream& s = bench.stream();
    ops::combine_rows_backward(s, dy.view(), outs.view(), position.view(), order.view(), weights.view(),
                               d_outs.view(), d_weights.view());
    experts.backward(bench, d_outs.view(), packed.view(), d_packed.view());
    ops::dispatch_rows_backward(s, d_packed.view(), position.view(), dx.view());
    ops::route_top_k_backward(s, d_weights.view(), logits.view(), picks.view(), probs.view(), lse.view(), {},
                              sums.view(), e.T, 1.0, options, balance, d_logits.view());
    ops::cast(s, x.view(), wide.view());
    ops::linear_backward_weight(s, d_logits.view(), wide.view(), d_gate.view());
    ops::router_bias_backward(s, d_logits.view(), d_bias.view());
    ops::linear_backward_input(s, d_logits.view(), gate.view(), wide.view());
    ops::cast(s, wide.view(), narrow.view());
    ops::add(s, narrow.view(), dx.view());
  }
};

void layer_case(Bench& bench, const Extents& e, DType dtype, const std::string& shape) {
  Layer layer(bench, e, dtype);
  layer.before_experts();
  const ConstTensorView counts = read_back(bench.stream(), layer.counts.view());
  const auto* const rows = counts.as<std::int64_t>();
  Experts experts(bench, dtype, e.D, e.F, {rows, static_cast<std::size_t>(e.E)});
  const std::vector<Timing> t = bench.time(
      {[&] { layer.forward(experts); }, [&] { layer.backward(experts); },
       [&] { experts.forward(bench, layer.packed.view(), layer.outs.view()); },
       [&] { experts.backward(bench, layer.d_outs.view(), layer.packed.view(), layer.d_packed.view()); }});
  const double product =
      giga(2.0 * static_cast<double>(e.T * e.K) * static_cast<double>(e.D) * static_cast<double>(e.F));
  bench.print({"moe_layer_forward", "layer", dtype, shape, t[0], 3 * product, 0, "", "its experts alone",
               t[2].median_ms, experts.fewest_rows});
  bench.print({"moe_layer_backward", "layer", dtype, shape, t[1], 6 * product, 0, "", "its experts alone",
               t[3].median_ms, experts.fewest_rows});
}

}  // namespace

void layer_cases(Bench& bench) {
  const Extents e = bench.tiny() ? Extents{9, 16, 8, 5, 2} : Extents{16384, 2048, 1408, 64, 8};
  const std::string shape =
      text("T", e.T) + text(" D", e.D) + text(" F", e.F) + text(" E", e.E) + text(" K", e.K);
  bench.run("layer bf16 " + shape, [&] { layer_case(bench, e, DType::bf16, shape); });
}

}  // namespace moecollab::bench
