// Grouped experts on the device against those on the host: mixed kinds, widths and row counts, in tiles of
// every size, in one call and in several.
#include "moecollab/ops/experts.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cuda/device_support.hpp"
#include "ops/cuda/experts.hpp"

namespace moecollab {
namespace {

using ops::ExpertSegment;
using ops::cuda::GemmTile;
using test::same_bits;
using test::to_device;
using test::to_host;

struct ExpertSpec {
  ExpertKind kind;
  std::int64_t rows, width;
  bool frozen = false;
};
constexpr ExpertKind kSwiglu = ExpertKind::swiglu, kAdapter = ExpertKind::adapter;

// What a call gets and gives, on the host.
struct Expert {
  ExpertSpec spec;
  std::vector<Tensor> weights;    // up, down, and gate of a swiglu expert
  std::vector<Tensor> gradients;  // of these, empty when frozen
};
struct Case {
  Tensor x, dy;
  std::vector<Expert> experts;
};
struct Result {
  Tensor y, dx, saved_gate, saved_up;  // as forward leaves saved_*
  std::vector<std::vector<Tensor>> gradients;
};

std::int64_t num_rows(const std::vector<ExpertSpec>& specs) {
  std::int64_t sum = 0;
  for (const ExpertSpec& spec : specs) sum += spec.rows;
  return sum;
}

Case make_case(DType dtype, std::int64_t dim, const std::vector<ExpertSpec>& specs) {
  const Shape rows{num_rows(specs), dim};
  Case out{test::random_tensor(dtype, rows, 1), test::random_tensor(dtype, rows, 2), {}};
  std::uint64_t stream = 10;
  for (const ExpertSpec& spec : specs) {
    Expert expert{spec, {}, {}};
    const double to_up = 1.0 / std::sqrt(static_cast<double>(dim));
    const double to_down = 1.0 / std::sqrt(static_cast<double>(spec.width));
    const Shape up{spec.width, dim}, down{dim, spec.width};
    expert.weights.push_back(test::random_tensor(dtype, up, stream++, to_up));
    expert.weights.push_back(test::random_tensor(dtype, down, stream++, to_down));
    if (spec.kind == kSwiglu) expert.weights.push_back(test::random_tensor(dtype, up, stream++, to_up));
    if (!spec.frozen)
      for (const Tensor& w : expert.weights)
        expert.gradients.push_back(test::random_tensor(accumulator_of(dtype), w.shape(), stream++));
    out.experts.push_back(std::move(expert));
  }
  return out;
}
Case converted(const Case& from, DType dtype) {
  Case out{test::converted(from.x.view(), dtype), test::converted(from.dy.view(), dtype), {}};
  for (const Expert& expert : from.experts) {
    Expert copy{expert.spec, {}, {}};
    for (const Tensor& w : expert.weights) copy.weights.push_back(test::converted(w.view(), dtype));
    for (const Tensor& d : expert.gradients)
      copy.gradients.push_back(test::converted(d.view(), accumulator_of(dtype)));
    out.experts.push_back(std::move(copy));
  }
  return out;
}

template <class T>
std::vector<ops::cpu::ExpertWork<T>> works(const std::vector<ExpertSegment>& segments, TensorView saved_gate,
                                           TensorView saved_up) {
  std::vector<ops::cpu::ExpertWork<T>> out;
  for (const ExpertSegment& s : segments) {
    if (s.row_begin == s.row_end) continue;
    ops::cpu::ExpertWork<T> work;
    work.kind = s.kind;
    work.row_begin = s.row_begin;
    work.row_end = s.row_end;
    work.width = s.width();
    work.w_gate = s.w_gate.empty() ? nullptr : s.w_gate.as<T>();
    work.w_up = s.w_up.as<T>();
    work.w_down = s.w_down.as<T>();
    work.d_gate = s.d_gate.empty() ? nullptr : s.d_gate.as<float>();
    work.d_up = s.d_up.empty() ? nullptr : s.d_up.as<float>();
    work.d_down = s.d_down.empty() ? nullptr : s.d_down.as<float>();
    work.saved_gate = saved_gate.as<T>() + s.saved_begin;
    work.saved_up = saved_up.as<T>() + s.saved_begin;
    out.push_back(work);
  }
  return out;
}

struct How {
  Device device = Device::cuda;
  GemmTile tile = GemmTile::by_shape;
  std::int64_t chunk_rows = 0;  // above 0: several calls of so many rows of each expert
};

// Forward and backward. Scratch memory and results begin as NaN.
Result run(const Case& in, const How& how) {
  const bool on_cpu = how.device == Device::cpu;
  Stream host_stream;
  Stream& stream = on_cpu ? host_stream : test::device_stream();
  const auto place = [&](const Tensor& t) { return on_cpu ? test::copy_of(t.view()) : to_device(t.view()); };
  const DType dtype = in.x.dtype();
  const std::int64_t dim = in.x.shape()[1];
  std::vector<std::vector<Tensor>> weights, gradients;
  std::int64_t longest = 1;
  for (const Expert& expert : in.experts) {
    longest = std::max(longest, expert.spec.rows);
    weights.emplace_back();
    gradients.emplace_back();
    for (const Tensor& w : expert.weights) weights.back().push_back(place(w));
    for (const Tensor& d : expert.gradients) gradients.back().push_back(place(d));
  }
  const Tensor x = place(in.x), dy = place(in.dy);
  const std::int64_t step = how.chunk_rows > 0 ? how.chunk_rows : longest;
  Arena results(1 << 20, true, how.device);
  const TensorView y = results.tensor(dtype, x.shape()), dx = results.tensor(dtype, x.shape());
  Result out;
  for (std::int64_t first = 0; first < longest; first += step) {
    Arena arena(1 << 20, true, how.device);
    std::vector<ExpertSegment> segments;
    std::vector<std::int64_t> begins;  // in x
    std::int64_t row = 0, whole = 0;
    for (std::size_t e = 0; e < in.experts.size(); ++e) {
      const ExpertSpec& spec = in.experts[e].spec;
      ExpertSegment s;
      s.kind = spec.kind;
      s.row_begin = row;
      s.row_end = row += std::clamp<std::int64_t>(spec.rows - first, 0, step);
      s.w_up = weights[e][0].view();
      s.w_down = weights[e][1].view();
      if (spec.kind == kSwiglu) s.w_gate = weights[e][2].view();
      if (!spec.frozen) {
        s.d_up = gradients[e][0].view();
        s.d_down = gradients[e][1].view();
        if (spec.kind == kSwiglu) s.d_gate = gradients[e][2].view();
      }
      segments.push_back(s);
      begins.push_back(whole + first);
      whole += spec.rows;
    }
    const std::int64_t saved = ops::layout_saved(segments);
    const auto part = [&] { return arena.tensor(dtype, {row, dim}); };
    const TensorView part_x = part(), part_dy = part(), part_y = part(), part_dx = part();
    const TensorView saved_gate = arena.tensor(dtype, {saved}), saved_up = arena.tensor(dtype, {saved});
    const auto for_segments = [&](auto&& f) {
      for (std::size_t e = 0; e < segments.size(); ++e) {
        const std::int64_t begin = segments[e].row_begin, end = segments[e].row_end;
        if (end > begin) f(begin, end, begins[e], begins[e] + end - begin);
      }
    };
    for_segments([&](std::int64_t begin, std::int64_t end, std::int64_t from, std::int64_t to) {
      copy(stream, x.view().rows(from, to), part_x.rows(begin, end));
      copy(stream, dy.view().rows(from, to), part_dy.rows(begin, end));
    });
    const auto forward_backward = [&]<class T>() {
      ops::cuda::experts_forward<T>(stream, arena, part_x.as<T>(), dim,
                                    works<T>(segments, saved_gate, saved_up), part_y.as<T>(), how.tile);
      stream.synchronize();
      out.saved_gate = to_host(saved_gate);
      out.saved_up = to_host(saved_up);
      ops::cuda::experts_backward<T>(stream, arena, part_dy.as<T>(), part_x.as<T>(), dim,
                                     works<T>(segments, saved_gate, saved_up), part_dx.as<T>(), how.tile);
    };
    if (how.tile == GemmTile::by_shape) {
      ops::experts_forward(stream, arena, part_x, segments, saved_gate, saved_up, part_y);
      stream.synchronize();
      out.saved_gate = to_host(saved_gate);
      out.saved_up = to_host(saved_up);
      ops::experts_backward(stream, arena, part_dy, part_x, segments, saved_gate, saved_up, part_dx);
    } else if (dtype == DType::f32) {
      forward_backward.operator()<float>();
    } else {
      forward_backward.operator()<BFloat16>();
    }
    for_segments([&](std::int64_t begin, std::int64_t end, std::int64_t from, std::int64_t to) {
      copy(stream, part_y.rows(begin, end), y.rows(from, to));
      copy(stream, part_dx.rows(begin, end), dx.rows(from, to));
    });
    stream.synchronize();
  }
  out.y = to_host(y);
  out.dx = to_host(dx);
  for (const std::vector<Tensor>& of_expert : gradients) {
    out.gradients.emplace_back();
    for (const Tensor& d : of_expert) out.gradients.back().push_back(to_host(d.view()));
  }
  return out;
}

void expect_same_bits(const Result& a, const Result& b, const std::string& what) {
  EXPECT_TRUE(same_bits(a.y.view(), b.y.view())) << what << ": y";
  EXPECT_TRUE(same_bits(a.dx.view(), b.dx.view())) << what << ": dx";
  ASSERT_EQ(a.gradients.size(), b.gradients.size());
  for (std::size_t e = 0; e < a.gradients.size(); ++e)
    for (std::size_t i = 0; i < a.gradients[e].size(); ++i)
      EXPECT_TRUE(same_bits(a.gradients[e][i].view(), b.gradients[e][i].view()))
          << what << ": gradient " << i << " of expert " << e;
}

// Rows and columns that fill no tile, hidden rows that begin anywhere.
const std::vector<ExpertSpec> kOdd{{kSwiglu, 130, 5}, {kAdapter, 65, 16},      {kSwiglu, 0, 16},
                                   {kSwiglu, 64, 40}, {kAdapter, 15, 136},     {kSwiglu, 1, 136},
                                   {kAdapter, 1, 5},  {kSwiglu, 257, 16, true}};
// For accesses of 16 bytes.
const std::vector<ExpertSpec> kEven{{kSwiglu, 300, 40}, {kAdapter, 257, 16},     {kSwiglu, 0, 16},
                                    {kSwiglu, 64, 136}, {kAdapter, 130, 136},    {kSwiglu, 15, 72},
                                    {kSwiglu, 1, 16},   {kAdapter, 70, 24, true}};

// More than a warp finds at one look.
const std::vector<ExpertSpec> kMany = [] {
  std::vector<ExpertSpec> specs;
  for (std::int64_t e = 0; e < 70; ++e) specs.push_back({e % 3 == 0 ? kAdapter : kSwiglu, e % 5, 8});
  return specs;
}();
struct Group {
  const char* name;
  std::int64_t dim;
  const std::vector<ExpertSpec>& specs;
};
const Group kGroups[] = {
    {"odd", 6, kOdd}, {"odd", 72, kOdd}, {"even", 16, kEven}, {"even", 136, kEven}, {"many", 8, kMany}};

class CudaExperts : public test::OnDevice {};

// f32: a sum of n terms errs by at most n eps times the sum of their sizes, here 2 n eps times the largest
// result, which is a few times one such sum. bf16: products are exact and sums f32, but pre-activations,
// hidden rows and results are each rounded to 2^-9 of themselves.
TEST_F(CudaExperts, AgreeWithTheHost) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const auto& [name, dim, specs] : kGroups) {
      const std::string what = std::string(to_string(dtype)) + ", " + name + ", width " + std::to_string(dim);
      const Case in = make_case(dtype, dim, specs);
      const Case exact_in = converted(in, DType::f64);
      const Result have = run(in, {}), want = run(exact_in, {Device::cpu});
      const auto expect_close = [&](const Tensor& result, const Tensor& exact, std::int64_t terms,
                                    const std::string& of) {
        const double unit = dtype == DType::f32
                                ? 2.0 * static_cast<double>(terms) * std::numeric_limits<float>::epsilon()
                                : 4.0 / 512;
        EXPECT_TRUE(test::close_to(result.view(), exact.view(), unit * test::max_abs(exact.view())))
            << what << ": " << of;
      };
      expect_close(have.saved_up, want.saved_up, dim, "pre-activations");
      expect_close(have.y, want.y, dim + 136, "y");
      expect_close(have.dx, want.dx, dim + 136, "dx");
      for (std::size_t e = 0; e < have.gradients.size(); ++e)
        for (std::size_t i = 0; i < have.gradients[e].size(); ++i)
          expect_close(have.gradients[e][i], want.gradients[e][i], dim + specs[e].rows,
                       "gradient " + std::to_string(i) + " of expert " + std::to_string(e));
    }
}

// An element's sum is the same in every tile, whoever its neighbours are, in every run, and in calls of whole
// tiles of rows.
TEST_F(CudaExperts, TilesRunsAndChunksMakeTheSameBits) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Case in = make_case(dtype, 72, kEven);
    const Result one = run(in, {});
    for (const GemmTile tile : {GemmTile::by_shape, GemmTile::large, GemmTile::any_row})
      expect_same_bits(one, run(in, {Device::cuda, tile}),
                       std::string(to_string(dtype)) + ", tile " + std::to_string(static_cast<int>(tile)));
    expect_same_bits(one, run(in, {Device::cuda, GemmTile::by_shape, ops::kRowTile}), "chunks");
    const Case odd = make_case(dtype, 6, kOdd);
    expect_same_bits(run(odd, {}), run(odd, {Device::cuda, GemmTile::by_shape, ops::kRowTile}), "odd chunks");
  }
}

TEST_F(CudaExperts, ExpertsWithoutRowsLeaveTheirGradients) {
  const Case in = make_case(DType::bf16, 16, {{kSwiglu, 0, 8}, {kAdapter, 0, 5}});
  const Result result = run(in, {});
  for (std::size_t e = 0; e < in.experts.size(); ++e)
    for (std::size_t i = 0; i < in.experts[e].gradients.size(); ++i)
      EXPECT_TRUE(same_bits(result.gradients[e][i].view(), in.experts[e].gradients[i].view()));
}

}  // namespace
}  // namespace moecollab
