// Experts of one layer, as the cases of experts and of whole layers use them.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "harness.hpp"
#include "moecollab/ops/experts.hpp"

namespace moecollab::bench {

// SwiGLU experts of one width that all train, with their rows packed, and what forward saves for backward.
struct Experts {
  std::int64_t dim, width;
  std::int64_t num_rows = 0, fewest_rows = 0;
  std::vector<Tensor> tensors;  // gate, up, down and their gradients of each
  std::vector<ops::ExpertSegment> segments;
  Tensor saved_gate, saved_up;

  Experts(Bench& bench, DType dtype, std::int64_t dim_in, std::int64_t width_in,
          std::span<const std::int64_t> rows)
      : dim(dim_in), width(width_in), fewest_rows(*std::min_element(rows.begin(), rows.end())) {
    const Shape up{width, dim}, down{dim, width};
    for (const std::int64_t n : rows) {
      const std::size_t at = tensors.size();
      for (const Shape& shape : {up, up, down}) tensors.push_back(bench.normal(dtype, shape, 0.02));
      for (const Shape& shape : {up, up, down}) tensors.push_back(Bench::zeros(DType::f32, shape));
      const auto view = [&](std::size_t i) { return tensors[at + i].view(); };
      segments.push_back({ExpertKind::swiglu, num_rows, num_rows + n, 0, view(0), view(1), view(2), view(3),
                          view(4), view(5)});
      num_rows += n;
    }
    const std::int64_t saved = ops::layout_saved(segments);
    saved_gate = Bench::zeros(dtype, {saved});
    saved_up = Bench::zeros(dtype, {saved});
  }

  void forward(Bench& bench, ConstTensorView x, TensorView y) {
    const ArenaScope scope(bench.arena());
    ops::experts_forward(bench.stream(), bench.arena(), x, segments, saved_gate.view(), saved_up.view(), y);
  }
  // Destroys what forward saved: to be called after a forward each time, or the values run away.
  void backward(Bench& bench, ConstTensorView dy, ConstTensorView x, TensorView dx) {
    const ArenaScope scope(bench.arena());
    ops::experts_backward(bench.stream(), bench.arena(), dy, x, segments, saved_gate.view(), saved_up.view(),
                          dx);
  }
};

}  // namespace moecollab::bench
