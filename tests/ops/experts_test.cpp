#include "moecollab/ops/experts.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "moecollab/core/error.hpp"
#include "support/gradient_check.hpp"

namespace moecollab {
namespace {

using ops::ExpertSegment;
using ops::kRowTile;
using test::copy_of;
using test::random_tensor;
using test::same_bits;

struct ExpertSpec {
  ExpertKind kind;
  std::int64_t rows, width;
  bool frozen = false;
};

// The parameters of a group of experts, and gradients that start at `d_start`.
struct Experts {
  struct One {
    ExpertSpec spec;
    Tensor gate, up, down, d_gate, d_up, d_down;
  };
  std::int64_t dim;
  std::vector<One> list;

  // Rows [first, last) of every expert, packed one expert after the other.
  std::vector<ExpertSegment> segments(std::int64_t first, std::int64_t last) const {
    std::vector<ExpertSegment> out;
    std::int64_t row = 0;
    for (const One& one : list) {
      ExpertSegment s;
      s.kind = one.spec.kind;
      s.row_begin = row;
      s.row_end = row += std::max<std::int64_t>(0, std::min(last, one.spec.rows) - first);
      s.w_gate = one.gate.view();
      s.w_up = one.up.view();
      s.w_down = one.down.view();
      s.d_gate = one.d_gate.view();
      s.d_up = one.d_up.view();
      s.d_down = one.d_down.view();
      out.push_back(s);
    }
    return out;
  }
  std::int64_t rows() const {
    std::int64_t sum = 0;
    for (const One& one : list) sum += one.spec.rows;
    return sum;
  }
};

Tensor filled(DType dtype, const Shape& shape, double value) {
  Tensor out(DType::f64, shape);
  std::fill_n(out.view().as<double>(), shape.numel(), value);
  return test::converted(out.view(), dtype);
}

// Weights of f32 and bf16 are those of f64, rounded.
Experts make_experts(DType dtype, std::int64_t dim, const std::vector<ExpertSpec>& specs,
                     double d_start = 0.0) {
  Experts out{dim, {}};
  std::uint64_t stream = 100;
  for (const ExpertSpec& spec : specs) {
    Experts::One one{spec, {}, {}, {}, {}, {}, {}};
    const Shape up{spec.width, dim}, down{dim, spec.width};
    const double std = 1.0 / std::sqrt(static_cast<double>(dim));
    if (spec.kind == ExpertKind::swiglu) one.gate = random_tensor(dtype, up, stream, std);
    one.up = random_tensor(dtype, up, stream + 1, std);
    one.down = random_tensor(dtype, down, stream + 2, std);
    if (!spec.frozen) {
      const DType accumulator = accumulator_of(dtype);
      if (spec.kind == ExpertKind::swiglu) one.d_gate = filled(accumulator, up, d_start);
      one.d_up = filled(accumulator, up, d_start);
      one.d_down = filled(accumulator, down, d_start);
    }
    out.list.push_back(std::move(one));
    stream += 3;
  }
  return out;
}

struct Result {
  Tensor y, dx;
  std::vector<Tensor> gradients;  // copies of d_gate, d_up, d_down of every expert that has them
};

// Forward and backward. With `chunk_rows` the group works in several calls of so many rows per expert each,
// as a layer with a row budget does. Arenas are poisoned: a read of anything unwritten would show.
Result run(const Experts& experts, ConstTensorView x, ConstTensorView dy, std::int64_t chunk_rows = 0) {
  Stream stream;
  Result out{Tensor(x.dtype, x.shape), Tensor(x.dtype, x.shape), {}};
  std::int64_t longest = 0;
  for (const auto& one : experts.list) longest = std::max(longest, one.spec.rows);
  const std::int64_t step = chunk_rows > 0 ? chunk_rows : std::max<std::int64_t>(longest, 1);
  for (std::int64_t first = 0; first < std::max<std::int64_t>(longest, 1); first += step) {
    Arena arena(1 << 20, true);
    std::vector<ExpertSegment> segments = experts.segments(first, first + step);
    const std::int64_t saved = ops::layout_saved(segments);
    const std::int64_t rows = segments.back().row_end;
    const TensorView part_x = arena.tensor(x.dtype, {rows, experts.dim});
    const TensorView part_dy = arena.tensor(x.dtype, {rows, experts.dim});
    const TensorView part_y = arena.tensor(x.dtype, {rows, experts.dim});
    const TensorView part_dx = arena.tensor(x.dtype, {rows, experts.dim});
    const TensorView saved_gate = arena.tensor(x.dtype, {saved}), saved_up = arena.tensor(x.dtype, {saved});
    // Copies rows between the whole (each expert's rows in one run) and the packed chunk.
    const auto move = [&](auto&& copy) {
      std::int64_t begin = 0;
      for (std::size_t e = 0; e < segments.size(); ++e) {
        const ExpertSegment& s = segments[e];
        if (s.row_end > s.row_begin) copy(begin + first, s.row_begin, s.row_end - s.row_begin);
        begin += experts.list[e].spec.rows;
      }
    };
    const auto assign = [](ConstTensorView from, TensorView to) {
      std::memcpy(to.data, from.data, static_cast<std::size_t>(to.size_bytes()));
    };
    move([&](std::int64_t whole, std::int64_t packed, std::int64_t n) {
      assign(x.rows(whole, whole + n), part_x.rows(packed, packed + n));
      assign(dy.rows(whole, whole + n), part_dy.rows(packed, packed + n));
    });
    ops::experts_forward(stream, arena, part_x, segments, saved_gate, saved_up, part_y);
    ops::experts_backward(stream, arena, part_dy, part_x, segments, saved_gate, saved_up, part_dx);
    move([&](std::int64_t whole, std::int64_t packed, std::int64_t n) {
      assign(part_y.rows(packed, packed + n), out.y.view().rows(whole, whole + n));
      assign(part_dx.rows(packed, packed + n), out.dx.view().rows(whole, whole + n));
    });
  }
  for (const auto& one : experts.list)
    for (const Tensor* d : {&one.d_gate, &one.d_up, &one.d_down})
      if (!d->empty()) out.gradients.push_back(copy_of(d->view()));
  return out;
}

void expect_same_bits(const Result& a, const Result& b, const std::string& what) {
  EXPECT_TRUE(same_bits(a.y.view(), b.y.view())) << what << ": y";
  EXPECT_TRUE(same_bits(a.dx.view(), b.dx.view())) << what << ": dx";
  ASSERT_EQ(a.gradients.size(), b.gradients.size());
  for (std::size_t i = 0; i < a.gradients.size(); ++i)
    EXPECT_TRUE(same_bits(a.gradients[i].view(), b.gradients[i].view())) << what << ": gradient " << i;
}

const std::vector<ExpertSpec> kSmall{{ExpertKind::swiglu, 4, 5},
                                     {ExpertKind::adapter, 3, 2},
                                     {ExpertKind::swiglu, 0, 3},
                                     {ExpertKind::swiglu, 1, 1},
                                     {ExpertKind::adapter, 5, 7}};

TEST(Experts, ForwardIsTheFormula) {
  const std::int64_t dim = 6;
  const Experts experts = make_experts(DType::f64, dim, kSmall);
  const Tensor x = random_tensor(DType::f64, {experts.rows(), dim}, 1);
  const Result result = run(experts, x.view(), x.view());
  std::int64_t row = 0;
  for (const auto& one : experts.list)
    for (std::int64_t r = 0; r < one.spec.rows; ++r, ++row) {
      const double* in = x.view().as<double>() + row * dim;
      std::vector<double> want(static_cast<std::size_t>(dim), 0.0);
      for (std::int64_t f = 0; f < one.spec.width; ++f) {
        double a = 0.0, b = 0.0;
        for (std::int64_t d = 0; d < dim; ++d) {
          if (one.spec.kind == ExpertKind::swiglu) a += in[d] * one.gate.view().as<double>()[f * dim + d];
          b += in[d] * one.up.view().as<double>()[f * dim + d];
        }
        const double h =
            one.spec.kind == ExpertKind::swiglu ? a / (1.0 + std::exp(-a)) * b : std::max(b, 0.0);
        for (std::int64_t d = 0; d < dim; ++d)
          want[static_cast<std::size_t>(d)] += h * one.down.view().as<double>()[d * one.spec.width + f];
      }
      for (std::int64_t d = 0; d < dim; ++d) {
        if (one.spec.kind == ExpertKind::adapter) want[static_cast<std::size_t>(d)] += in[d];
        EXPECT_NEAR(result.y.view().as<double>()[row * dim + d], want[static_cast<std::size_t>(d)], 1e-14);
      }
    }
}

TEST(Experts, GradientsMatchFiniteDifferences) {
  const std::int64_t dim = 6;
  const Experts experts = make_experts(DType::f64, dim, kSmall);
  const Tensor x = random_tensor(DType::f64, {experts.rows(), dim}, 1);
  const Tensor dy = random_tensor(DType::f64, {experts.rows(), dim}, 2);
  const Result result = run(experts, x.view(), dy.view());
  const auto loss = [&] {
    Stream stream;
    Arena arena(1 << 14);
    auto segments = experts.segments(0, 1000);
    const std::int64_t saved = ops::layout_saved(segments);
    const TensorView y = arena.tensor(DType::f64, x.shape());
    ops::experts_forward(stream, arena, x.view(), segments, arena.tensor(DType::f64, {saved}),
                         arena.tensor(DType::f64, {saved}), y);
    return test::dot(y, dy.view());
  };
  EXPECT_TRUE(test::gradient_matches(loss, x.view(), result.dx.view()));
  std::size_t next = 0;
  for (const auto& one : experts.list)
    for (const Tensor* w : {&one.gate, &one.up, &one.down}) {
      if (w->empty()) continue;
      EXPECT_TRUE(test::gradient_matches(loss, w->view(), result.gradients[next].view())) << next;
      ++next;
    }
}

TEST(Experts, GradientsAccumulateAndStayUntouchedWithoutRows) {
  const std::int64_t dim = 8;
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Experts fresh = make_experts(dtype, dim, kSmall), begun = make_experts(dtype, dim, kSmall, 3.0);
    const Tensor x = random_tensor(dtype, {fresh.rows(), dim}, 1);
    const Result a = run(fresh, x.view(), x.view()), b = run(begun, x.view(), x.view());
    const double eps = dtype == DType::f32 ? std::numeric_limits<float>::epsilon() : 2.3e-16;
    for (std::size_t i = 0; i < a.gradients.size(); ++i) {
      const Tensor plain = test::converted(a.gradients[i].view(), DType::f64);
      const Tensor added = test::converted(b.gradients[i].view(), DType::f64);
      double largest = 0.0;
      for (std::int64_t j = 0; j < plain.shape().numel(); ++j) {
        const double p = plain.view().as<double>()[j];
        EXPECT_NEAR(added.view().as<double>()[j], p + 3.0, 8 * eps * (std::abs(p) + 3.0));
        largest = std::max(largest, std::abs(p));
      }
      const bool without_rows = i >= 5 && i < 8;  // the third expert's
      EXPECT_EQ(largest == 0.0, without_rows) << "gradient " << i;
    }
    const Tensor start = filled(accumulator_of(dtype), begun.list[2].d_up.shape(), 3.0);
    EXPECT_TRUE(same_bits(begun.list[2].d_up.view(), start.view()));
  }
}

TEST(Experts, FrozenExpertsPassGradientsThrough) {
  auto specs = kSmall;
  const std::int64_t dim = 8;
  const Experts open = make_experts(DType::f32, dim, specs);
  specs[0].frozen = specs[4].frozen = true;
  const Experts frozen = make_experts(DType::f32, dim, specs);
  const Tensor x = random_tensor(DType::f32, {open.rows(), dim}, 1);
  const Result a = run(open, x.view(), x.view()), b = run(frozen, x.view(), x.view());
  EXPECT_TRUE(same_bits(a.y.view(), b.y.view()));
  EXPECT_TRUE(same_bits(a.dx.view(), b.dx.view()));
  EXPECT_EQ(b.gradients.size(), a.gradients.size() - 5);
  EXPECT_TRUE(same_bits(a.gradients[3].view(), b.gradients[0].view()));
}

// f32: sums of n = D + F (weight gradients: rows) terms, each rounded; bound 4 n eps times the largest value.
// bf16: the values in between (pre-activations, hidden rows and their gradients) and the result are rounded
// to 2^-8; inputs are the same. Bound: 8 roundings times the largest value.
TEST(Experts, F32AndBf16AgreeWithDouble) {
  const std::int64_t dim = 64;
  const std::vector<ExpertSpec> specs{
      {ExpertKind::swiglu, 300, 96}, {ExpertKind::adapter, 70, 16}, {ExpertKind::swiglu, 33, 50}};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Experts experts = make_experts(dtype, dim, specs);
    Experts wide = make_experts(DType::f64, dim, specs);
    for (std::size_t e = 0; e < specs.size(); ++e) {
      if (!experts.list[e].gate.empty())
        wide.list[e].gate = test::converted(experts.list[e].gate.view(), DType::f64);
      wide.list[e].up = test::converted(experts.list[e].up.view(), DType::f64);
      wide.list[e].down = test::converted(experts.list[e].down.view(), DType::f64);
    }
    const Tensor x = random_tensor(dtype, {experts.rows(), dim}, 1);
    const Tensor dy = random_tensor(dtype, {experts.rows(), dim}, 2);
    const Result have = run(experts, x.view(), dy.view());
    const Result want = run(wide, test::converted(x.view(), DType::f64).view(),
                            test::converted(dy.view(), DType::f64).view());
    const auto bound = [&](ConstTensorView exact, std::int64_t terms) {
      return (dtype == DType::f32 ? 4.0 * static_cast<double>(terms) * std::numeric_limits<float>::epsilon()
                                  : 8.0 / 256) *
             test::max_abs(exact);
    };
    EXPECT_LE(test::max_abs_difference(have.y.view(), want.y.view()), bound(want.y.view(), dim + 96));
    EXPECT_LE(test::max_abs_difference(have.dx.view(), want.dx.view()), bound(want.dx.view(), dim + 96));
    for (std::size_t i = 0; i < have.gradients.size(); ++i)
      EXPECT_LE(test::max_abs_difference(have.gradients[i].view(), want.gradients[i].view()),
                bound(want.gradients[i].view(), 300))
          << to_string(dtype) << " gradient " << i;
  }
}

// Uneven widths, more and less than a tile, exactly a tile, none.
const std::vector<ExpertSpec> kUneven{{ExpertKind::swiglu, 600, 96}, {ExpertKind::swiglu, 256, 40},
                                      {ExpertKind::swiglu, 0, 32},   {ExpertKind::adapter, 300, 24},
                                      {ExpertKind::swiglu, 77, 64},  {ExpertKind::swiglu, 513, 33, true}};

TEST(Experts, ChunksOfWholeTilesMakeTheSameBits) {
  const std::int64_t dim = 48;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    const Tensor x = random_tensor(dtype, {make_experts(dtype, dim, kUneven).rows(), dim}, 1);
    const Tensor dy = random_tensor(dtype, x.shape(), 2);
    const Result whole = run(make_experts(dtype, dim, kUneven, 0.5), x.view(), dy.view());
    for (const std::int64_t tiles : {1, 2})
      expect_same_bits(whole,
                       run(make_experts(dtype, dim, kUneven, 0.5), x.view(), dy.view(), tiles * kRowTile),
                       std::string(to_string(dtype)) + " in chunks of " + std::to_string(tiles) + " tiles");
  }
}

// Wider than a panel, so that a tile is several units of work.
TEST(Experts, ThreadsDoNotChangeBits) {
  const std::int64_t dim = 560;
  const std::vector<ExpertSpec> specs{{ExpertKind::swiglu, 300, 600}, {ExpertKind::adapter, 40, 530}};
  const int before = omp_get_max_threads();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor x = random_tensor(dtype, {340, dim}, 1), dy = random_tensor(dtype, {340, dim}, 2);
    omp_set_num_threads(1);
    const Result one = run(make_experts(dtype, dim, specs), x.view(), dy.view());
    for (const int threads : {2, 3}) {
      omp_set_num_threads(threads);
      expect_same_bits(one, run(make_experts(dtype, dim, specs), x.view(), dy.view()),
                       std::to_string(threads) + " threads, " + to_string(dtype));
    }
  }
  omp_set_num_threads(before);
}

// Many experts at once on more threads than cores: what a scratch area shared by mistake would break.
TEST(Experts, ManyExpertsAtOnceDoNotDisturbOneAnother) {
  const std::int64_t dim = 32;
  std::vector<ExpertSpec> specs;
  for (std::int64_t e = 0; e < 48; ++e)
    specs.push_back({e % 5 == 4 ? ExpertKind::adapter : ExpertKind::swiglu, (e * 37) % 90, 8 + e % 7 * 8});
  const int before = omp_get_max_threads();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor x = random_tensor(dtype, {make_experts(dtype, dim, specs).rows(), dim}, 1);
    omp_set_num_threads(1);
    const Result one = run(make_experts(dtype, dim, specs), x.view(), x.view());
    omp_set_num_threads(4);
    for (int round = 0; round < 8; ++round)
      expect_same_bits(one, run(make_experts(dtype, dim, specs), x.view(), x.view()),
                       "round " + std::to_string(round));
  }
  omp_set_num_threads(before);
}

TEST(Experts, NoRowsAtAllIsFine) {
  const Experts experts =
      make_experts(DType::f32, 8, {{ExpertKind::swiglu, 0, 4}, {ExpertKind::adapter, 0, 4}}, 1.0);
  const Tensor x(DType::f32, {0, 8});
  const Result result = run(experts, x.view(), x.view());
  for (const Tensor& d : result.gradients)
    EXPECT_TRUE(same_bits(d.view(), filled(DType::f32, d.shape(), 1.0).view()));
}

TEST(Experts, BrokenPromisesAreNamed) {
  Stream stream;
  Arena arena;
  const Experts experts =
      make_experts(DType::f32, 8, {{ExpertKind::swiglu, 3, 4}, {ExpertKind::swiglu, 2, 4}});
  const TensorView x = arena.tensor(DType::f32, {5, 8}), y = arena.tensor(DType::f32, {5, 8});
  const auto forward = [&](std::vector<ExpertSegment> segments, std::int64_t saved_numel) {
    const TensorView saved = arena.tensor(DType::f32, {saved_numel});
    ops::experts_forward(stream, arena, x, segments, saved, saved, y);
  };
  auto good = experts.segments(0, 10);
  const std::int64_t saved = ops::layout_saved(good);
  EXPECT_EQ(saved, 20);
  EXPECT_EQ(good[1].saved_begin, 12);
  auto overlapping = good, beyond = good, no_gate = good;
  overlapping[1].row_begin = 2;
  beyond[1].row_end = 6;
  no_gate[0].w_gate = {};
  EXPECT_THROW(forward(overlapping, saved), ShapeError);
  EXPECT_THROW(forward(beyond, saved), ShapeError);
  EXPECT_THROW(forward(no_gate, saved), ShapeError);
  EXPECT_THROW(forward(good, saved - 1), ShapeError);
  auto half_frozen = good;
  half_frozen[0].d_up = {};
  const TensorView memory = arena.tensor(DType::f32, {saved});
  EXPECT_THROW(ops::experts_backward(stream, arena, x, x, half_frozen, memory, memory, y), Error);
}

}  // namespace
}  // namespace moecollab
