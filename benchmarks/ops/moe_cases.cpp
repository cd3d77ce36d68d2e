#include <array>
#include <numeric>

#include "harness.hpp"
#include "moecollab/core/arena.hpp"
#include "moecollab/ops/experts.hpp"
#include "moecollab/ops/permute.hpp"
#include "moecollab/ops/route_top_k.hpp"

namespace moecollab::bench {
namespace {

constexpr std::int64_t kTokens = 2048, kDim = 512, kExperts = 8, kPicks = 2;

struct Routed {
  Tensor logits = normal(DType::f32, {kTokens, kExperts}, 1);
  Tensor picks{DType::i32, {kTokens, kPicks}}, weights{DType::f32, {kTokens, kPicks}};
  Tensor probs{DType::f32, {kTokens, kExperts}}, lse{DType::f32, {kTokens}};
  Tensor order{DType::i32, {kTokens * kPicks}}, position{DType::i32, {kTokens, kPicks}};
  Tensor counts{DType::i64, {kExperts}};
  std::array<std::int32_t, kExperts> key{};

  void route(Stream& stream) {
    ops::route_top_k_forward(stream, logits.view(), {}, {}, ops::RouterOptions{}, picks.view(),
                             weights.view(), probs.view(), lse.view());
  }
  void sort(Stream& stream) {
    ops::sort_picks(stream, picks.view(), key, 0, {}, order.view(), position.view(), counts.view());
  }
};

struct ExpertWeights {
  Tensor gate, up, down, d_gate, d_up, d_down;
  ExpertWeights(DType dtype, std::int64_t width, std::uint64_t stream)
      : gate(normal(dtype, {width, kDim}, stream)),
        up(normal(dtype, {width, kDim}, stream + 1)),
        down(normal(dtype, {kDim, width}, stream + 2)),
        d_gate(DType::f32, {width, kDim}),
        d_up(DType::f32, {width, kDim}),
        d_down(DType::f32, {kDim, width}) {}
};

void experts_case(Stream& stream, DType dtype, const Routed& routed, std::int64_t width, Rows& rows) {
  constexpr std::int64_t R = kTokens * kPicks;
  std::vector<ExpertWeights> weights;
  std::vector<ops::ExpertSegment> segments;
  std::int64_t begin = 0;
  for (std::int64_t e = 0; e < kExperts; ++e) {
    const auto& w = weights.emplace_back(dtype, width, static_cast<std::uint64_t>(10 * e + 20));
    const std::int64_t end = begin + routed.counts.view().as<std::int64_t>()[e];
    segments.push_back({ExpertKind::swiglu, begin, end, 0, w.gate.view(), w.up.view(), w.down.view(),
                        w.d_gate.view(), w.d_up.view(), w.d_down.view()});
    begin = end;
  }
  const std::int64_t saved = ops::layout_saved(segments);
  const Tensor x = normal(dtype, {R, kDim}, 2), dy = normal(dtype, {R, kDim}, 3), y(dtype, {R, kDim});
  const Tensor dx(dtype, {R, kDim}), saved_gate(dtype, {saved}), saved_up(dtype, {saved});
  Arena arena;
  const std::string shape =
      text("R", R) + text("D", kDim) + text("F", width) + text("E", kExperts) + "uneven";
  const double product = 2e-9 * static_cast<double>(R * kDim) * static_cast<double>(width);
  rows.push_back({"experts_forward", shape, dtype, best_ms([&] {
                    const ArenaScope scope(arena);
                    ops::experts_forward(stream, arena, x.view(), segments, saved_gate.view(),
                                         saved_up.view(), y.view());
                  }),
                  3 * product, 0});
  // Backward destroys what forward saved, but its work does not depend on the values.
  rows.push_back({"experts_backward", shape, dtype, best_ms([&] {
                    const ArenaScope scope(arena);
                    ops::experts_backward(stream, arena, dy.view(), x.view(), segments, saved_gate.view(),
                                          saved_up.view(), dx.view());
                  }),
                  6 * product, 0});
}

}  // namespace

void moe_cases(Stream& stream, DType dtype, Rows& rows) {
  Routed routed;
  std::iota(routed.key.begin(), routed.key.end(), 0);
  routed.route(stream);
  routed.sort(stream);
  const std::string shape = text("T", kTokens) + text("E", kExperts) + text("K", kPicks);
  if (dtype == DType::f32) {  // the gate is always in f32
    const double moved = static_cast<double>(2 * routed.logits.size_bytes());
    rows.push_back(
        {"route_top_k_forward", shape, dtype, best_ms([&] { routed.route(stream); }), 0, moved * 1e-9});
    rows.push_back({"sort_picks", shape, dtype, best_ms([&] { routed.sort(stream); }), 0,
                    static_cast<double>(3 * routed.picks.size_bytes()) * 1e-9});
  }
  constexpr std::int64_t R = kTokens * kPicks;
  const Tensor x = normal(dtype, {kTokens, kDim}, 1), packed(dtype, {R, kDim}), y(dtype, {kTokens, kDim});
  const Tensor d_packed(dtype, {R, kDim}), d_weights(DType::f32, {kTokens, kPicks});
  const double row_bytes = static_cast<double>(x.size_bytes()) * 1e-9;
  const std::string moved = shape + text("D", kDim);
  rows.push_back({"gather_rows", moved, dtype, best_ms([&] {
                    ops::gather_rows(stream, x.view(), routed.order.view(), kPicks, packed.view());
                  }),
                  0, row_bytes * (1 + kPicks)});
  rows.push_back({"combine_rows_forward", moved, dtype, best_ms([&] {
                    ops::combine_rows_forward(stream, packed.view(), routed.position.view(),
                                              routed.weights.view(), y.view());
                  }),
                  0, row_bytes * (1 + kPicks)});
  rows.push_back({"combine_rows_backward", moved, dtype, best_ms([&] {
                    ops::combine_rows_backward(stream, y.view(), packed.view(), routed.position.view(),
                                               routed.order.view(), routed.weights.view(), d_packed.view(),
                                               d_weights.view());
                  }),
                  0, row_bytes * (1 + 2 * kPicks)});
  experts_case(stream, dtype, routed, 256, rows);
  experts_case(stream, dtype, routed, 1024, rows);
}

}  // namespace moecollab::bench
