// Routing, permutation and combine: nothing but memory traffic. Bytes are those that must move once; the
// reading of a token's row by each of its picks counts once.
#include <numeric>
#include <utility>

#include "harness.hpp"
#include "moecollab/ops/permute.hpp"
#include "moecollab/ops/route_top_k.hpp"
#include "moecollab/ops/router_logits.hpp"

namespace moecollab::bench {
namespace {

struct Extents {
  std::int64_t T, D, E, K;
};

void rows_case(Bench& bench, DType dtype, const Extents& x) {
  Stream& s = bench.stream();
  const ops::RouterOptions options{x.K};
  const ops::BalanceOptions balance{0.01, 0.001, 0.0, 0.0};
  const Tensor logits = bench.normal(DType::f32, {x.T, x.E}, 1.0);
  const Tensor picks = Bench::zeros(DType::i32, {x.T, x.K}), weights = Bench::zeros(DType::f32, {x.T, x.K});
  const Tensor probs = Bench::zeros(DType::f32, {x.T, x.E}), lse = Bench::zeros(DType::f32, {x.T});
  const Tensor sums = Bench::zeros(DType::f64, {2 * x.E + 2}),
               d_logits = Bench::zeros(DType::f32, {x.T, x.E});
  const Tensor order = Bench::zeros(DType::i32, {x.T * x.K}), position = Bench::zeros(DType::i32, {x.T, x.K});
  const Tensor counts = Bench::zeros(DType::i64, {x.E}), d_weights = bench.normal(DType::f32, {x.T, x.K});
  std::vector<std::int32_t> key(static_cast<std::size_t>(x.E));
  std::iota(key.begin(), key.end(), 0);

  const std::string gate_shape = text("T", x.T) + text(" E", x.E) + text(" K", x.K);
  const auto row = [&](const char* name, DType type, const std::string& shape, double bytes,
                       const char* formula, const std::function<void()>& call) {
    bench.run(std::string(name) + ' ' + to_string(type), [&] {
      bench.print({name, "rows", type, shape, bench.time(call), 0, giga(bytes), formula});
    });
  };
  const auto T = static_cast<double>(x.T), D = static_cast<double>(x.D), E = static_cast<double>(x.E),
             K = static_cast<double>(x.K), A = static_cast<double>(size_bytes(dtype));
  const auto route = [&] {
    ops::route_top_k_forward(s, logits.view(), {}, {}, options, picks.view(), weights.view(), probs.view(),
                             lse.view());
  };
  const auto sort = [&] {
    ops::sort_picks(s, picks.view(), key, 0, {}, order.view(), position.view(), counts.view());
  };
  route();  // what the other cases read
  sort();
  ops::routing_sums(s, picks.view(), probs.view(), lse.view(), {}, sums.view());
  if (dtype == DType::bf16) {  // the gate is in f32 for either type
    row("route_top_k_forward", DType::f32, gate_shape, T * (8 * E + 8 * K + 4), "T (8 E + 8 K + 4)", route);
    row("routing_sums", DType::f32, gate_shape, T * (4 * E + 4 * K + 4), "T (4 E + 4 K + 4)",
        [&] { ops::routing_sums(s, picks.view(), probs.view(), lse.view(), {}, sums.view()); });
    row("route_top_k_backward", DType::f32, gate_shape, T * (12 * E + 8 * K + 4), "T (12 E + 8 K + 4)", [&] {
      ops::route_top_k_backward(s, d_weights.view(), logits.view(), picks.view(), probs.view(), lse.view(),
                                {}, sums.view(), x.T, 1.0, options, balance, d_logits.view());
    });
    row("sort_picks", DType::i32, gate_shape, 12 * T * K, "12 T K", sort);
  }
  const std::string shape = gate_shape + text(" D", x.D);
  const Tensor tokens = bench.normal(dtype, {x.T, x.D}), out = Bench::zeros(dtype, {x.T, x.D});
  const Tensor packed = bench.normal(dtype, {x.T * x.K, x.D}),
               d_packed = Bench::zeros(dtype, {x.T * x.K, x.D});
  const Tensor w_gate = bench.normal(DType::f32, {x.E, x.D}, 0.02), bias = Bench::zeros(DType::f32, {x.E});
  row("router_logits_forward", dtype, shape, T * D * A + 4 * E * D + 4 * T * E, "T D A + 4 E D + 4 T E",
      [&] { ops::router_logits_forward(s, tokens.view(), w_gate.view(), bias.view(), d_logits.view()); });
  row("gather_rows", dtype, shape, T * D * A * (1 + K) + 4 * T * K, "(1 + K) T D A + 4 T K",
      [&] { ops::gather_rows(s, tokens.view(), order.view(), x.K, d_packed.view()); });
  row("combine_rows_forward", dtype, shape, T * D * A * (1 + K) + 8 * T * K, "(1 + K) T D A + 8 T K",
      [&] { ops::combine_rows_forward(s, packed.view(), position.view(), weights.view(), out.view()); });
  row("combine_rows_backward", dtype, shape, T * D * A * (1 + 2 * K) + 16 * T * K, "(1 + 2 K) T D A + 16 T K",
      [&] {
        ops::combine_rows_backward(s, tokens.view(), packed.view(), position.view(), order.view(),
                                   weights.view(), d_packed.view(), d_weights.view());
      });
  row("dispatch_rows_backward", dtype, shape, T * D * A * (1 + K) + 4 * T * K, "(1 + K) T D A + 4 T K",
      [&] { ops::dispatch_rows_backward(s, packed.view(), position.view(), out.view()); });
}

}  // namespace

void rows_cases(Bench& bench) {
  const Extents extents = bench.tiny() ? Extents{9, 16, 5, 2} : Extents{32768, 2048, 64, 8};
  for (const DType dtype : {DType::bf16, DType::f32})
    bench.run(std::string("rows ") + to_string(dtype), [&] { rows_case(bench, dtype, extents); });
}

}  // namespace moecollab::bench
