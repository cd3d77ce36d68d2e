// Grouped products of experts against dense products of the same FLOPs by cuBLASLt, on as many rows and one
// expert's weights.
#include "experts_cases.hpp"

#include "moecollab/ops/linear.hpp"

namespace moecollab::bench {
namespace {

struct Case {
  DType dtype;
  std::int64_t dim, width, experts, rows;  // rows of each expert, or on average
  bool uneven;
};
constexpr Case kCases[] = {
    {DType::bf16, 2048, 1408, 64, 2048, false}, {DType::bf16, 4096, 14336, 8, 4096, false},
    {DType::bf16, 2048, 1408, 64, 2048, true},  {DType::bf16, 2048, 1408, 64, 256, false},
    {DType::f32, 2048, 1408, 8, 2048, false},
};
constexpr Case kTinyCases[] = {{DType::bf16, 16, 24, 3, 8, false}, {DType::f32, 16, 8, 4, 6, true}};

// Uneven: from none to twice the average, the same total (E even or not).
std::vector<std::int64_t> rows_of(const Case& c) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(c.experts), c.rows);
  if (c.uneven)
    for (std::int64_t e = 0; e < c.experts; ++e)
      rows[static_cast<std::size_t>(e)] = c.experts == 1 ? c.rows : 2 * c.rows * e / (c.experts - 1);
  return rows;
}

void experts_case(Bench& bench, const Case& c, const std::string& shape) {
  Experts experts(bench, c.dtype, c.dim, c.width, rows_of(c));
  const std::int64_t R = experts.num_rows;
  const Tensor x = bench.normal(c.dtype, {R, c.dim}), dy = bench.normal(c.dtype, {R, c.dim});
  const Tensor y = Bench::zeros(c.dtype, {R, c.dim}), dx = Bench::zeros(c.dtype, {R, c.dim});
  const Tensor hidden = bench.normal(c.dtype, {R, c.width});
  const Tensor d_hidden = bench.normal(c.dtype, {R, c.width}, 0.02);
  const ops::ExpertSegment& w = experts.segments[0];
  const Tensor d_up = Bench::zeros(DType::f32, {c.width, c.dim}),
               d_down = Bench::zeros(DType::f32, {c.dim, c.width});
  Stream& s = bench.stream();
  const auto dense_forward = [&] {
    ops::linear_forward(s, x.view(), w.w_gate, hidden.view());
    ops::linear_forward(s, x.view(), w.w_up, hidden.view());
    ops::linear_forward(s, hidden.view(), w.w_down, y.view());
  };
  const auto dense_backward = [&] {
    ops::linear_backward_input(s, dy.view(), w.w_down, d_hidden.view());
    ops::linear_backward_input(s, d_hidden.view(), w.w_gate, dx.view());
    ops::linear_backward_input(s, d_hidden.view(), w.w_up, dx.view());
    ops::linear_backward_weight(s, dy.view(), hidden.view(), d_down.view());
    ops::linear_backward_weight(s, d_hidden.view(), x.view(), d_up.view());
    ops::linear_backward_weight(s, d_hidden.view(), x.view(), d_up.view());
  };
  const std::vector<Timing> t =
      bench.time({[&] { experts.forward(bench, x.view(), y.view()); }, dense_forward,
                  [&] { experts.backward(bench, dy.view(), x.view(), dx.view()); }, dense_backward});
  const double product = giga(2.0 * static_cast<double>(R * c.dim) * static_cast<double>(c.width));
  const std::string dense = "dense products by cuBLASLt";
  bench.print({"experts_forward", "experts", c.dtype, shape, t[0], 3 * product, 0, "", dense, t[1].median_ms,
               experts.fewest_rows});
  bench.print({"experts_backward", "experts", c.dtype, shape, t[2], 6 * product, 0, "", dense, t[3].median_ms,
               experts.fewest_rows});
}

}  // namespace

void experts_cases(Bench& bench) {
  const std::span<const Case> cases = bench.tiny() ? std::span<const Case>(kTinyCases) : kCases;
  for (const Case& c : cases) {
    // torch_grouped_mm.py writes the same text for the same case.
    const std::string shape = text("D", c.dim) + text(" F", c.width) + text(" E", c.experts) +
                              text(" rows ", c.rows) + (c.uneven ? " uneven" : " each");
    bench.run(std::string("experts ") + to_string(c.dtype) + ' ' + shape,
              [&] { experts_case(bench, c, shape); });
  }
}

}  // namespace moecollab::bench
