#include "moecollab/ops/permute.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "moecollab/core/error.hpp"
#include "moecollab/core/random.hpp"
#include "support/gradient_check.hpp"

namespace moecollab {
namespace {

using test::copy_of;
using test::random_tensor;
using test::same_bits;

struct Sorted {
  Tensor order, position, counts;
};

Sorted sort(ConstTensorView picks, const std::vector<std::int32_t>& keys) {
  Stream stream;
  Sorted out{Tensor(DType::i32, {picks.numel()}), Tensor(DType::i32, picks.shape),
             Tensor(DType::i64, {static_cast<std::int64_t>(keys.size())})};
  std::fill_n(out.counts.view().as<std::int64_t>(), keys.size(), 99);  // must be overwritten
  ops::sort_picks(stream, picks, keys, out.order.view(), out.position.view(), out.counts.view());
  return out;
}

// What an output holds before it is written: every element must be overwritten.
Tensor unwritten(DType dtype, const Shape& shape) { return random_tensor(dtype, shape, 77, 1e6); }

// Random picks; about one in `one_in` is -1, and expert `unused` is never picked.
Tensor random_picks(std::int64_t tokens, std::int64_t num_picks, std::int32_t experts, std::int64_t one_in,
                    std::int32_t unused = -1) {
  Tensor picks(DType::i32, {tokens, num_picks});
  auto* p = picks.view().as<std::int32_t>();
  for (std::int64_t i = 0; i < tokens * num_picks; ++i) {
    const auto index = static_cast<std::uint64_t>(i);
    p[i] = static_cast<std::int32_t>(random_below(7, 1, index, experts));
    if (p[i] == unused) p[i] = (unused + 1) % experts;
    if (one_in > 0 && random_below(7, 2, index, one_in) == 0) p[i] = -1;
  }
  return picks;
}

std::vector<std::int32_t> rotated_keys(std::int32_t experts) {
  std::vector<std::int32_t> keys(static_cast<std::size_t>(experts));
  for (std::int32_t e = 0; e < experts; ++e) keys[static_cast<std::size_t>(e)] = (e * 3 + 2) % experts;
  return keys;  // a permutation where 3 does not divide `experts`
}

TEST(SortPicks, IsTheStableSortByKey) {
  for (const std::int64_t tokens : {0, 1, 17, 2048, 5000}) {
    const std::int32_t experts = 7;
    const Tensor picks = random_picks(tokens, 3, experts, 5, 4);
    const auto keys = rotated_keys(experts);
    const Sorted sorted = sort(picks.view(), keys);

    const auto* p = picks.view().as<std::int32_t>();
    std::vector<std::int32_t> want;
    for (std::int32_t i = 0; i < tokens * 3; ++i)
      if (p[i] >= 0) want.push_back(i);
    const auto key = [&](std::int32_t pick) { return keys[static_cast<std::size_t>(p[pick])]; };
    std::stable_sort(want.begin(), want.end(), [&](auto a, auto b) { return key(a) < key(b); });
    const std::size_t kept = want.size();
    want.resize(static_cast<std::size_t>(tokens * 3), -1);

    const auto* order = sorted.order.view().as<std::int32_t>();
    EXPECT_EQ(std::vector<std::int32_t>(order, order + tokens * 3), want) << tokens << " tokens";
    std::vector<std::int32_t> position(static_cast<std::size_t>(tokens * 3), -1);
    std::vector<std::int64_t> counts(7, 0);
    for (std::size_t i = 0; i < kept; ++i) {
      position[static_cast<std::size_t>(want[i])] = static_cast<std::int32_t>(i);
      ++counts[static_cast<std::size_t>(key(want[i]))];
    }
    const auto* have = sorted.position.view().as<std::int32_t>();
    EXPECT_EQ(std::vector<std::int32_t>(have, have + tokens * 3), position);
    const auto* have_counts = sorted.counts.view().as<std::int64_t>();
    EXPECT_EQ(std::vector<std::int64_t>(have_counts, have_counts + 7), counts);
    EXPECT_EQ(have_counts[keys[4]], 0);
  }
}

TEST(SortPicks, RefusesKeysThatAreNoPermutation) {
  const Tensor picks = random_picks(2, 1, 3, 0);
  EXPECT_THROW(sort(picks.view(), {0, 1, 1}), ShapeError);
  EXPECT_THROW(sort(picks.view(), {0, 1, 3}), ShapeError);
  EXPECT_THROW(sort(picks.view(), {0, 1, -1}), ShapeError);
}

TEST(GatherRows, PullsTheRowOfTheToken) {
  Stream stream;
  const std::int64_t tokens = 9, num_picks = 2;
  const Sorted sorted = sort(random_picks(tokens, num_picks, 4, 0).view(), rotated_keys(4));
  const auto* order = sorted.order.view().as<std::int32_t>();
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64})
    for (const std::int64_t dim : {1, 5, 640}) {
      const Tensor x = random_tensor(dtype, {tokens, dim}, 3);
      Tensor y(dtype, {tokens * num_picks, dim});
      ops::gather_rows(stream, x.view(), sorted.order.view(), num_picks, y.view());
      for (std::int64_t i = 0; i < tokens * num_picks; ++i) {
        const std::int64_t t = order[i] / num_picks;
        EXPECT_TRUE(same_bits(y.view().rows(i, i + 1), x.view().rows(t, t + 1)));
      }
    }
  Tensor wrong(DType::bf16, {tokens * num_picks, 5});
  EXPECT_THROW(ops::gather_rows(stream, random_tensor(DType::f32, {tokens, 5}, 3).view(), sorted.order.view(),
                                num_picks, wrong.view()),
               DTypeError);
}

double element(ConstTensorView x, std::int64_t i) {
  if (x.dtype == DType::f32) return x.as<float>()[i];
  if (x.dtype == DType::bf16) return static_cast<float>(x.as<BFloat16>()[i]);
  return x.as<double>()[i];
}

double eps_of(DType dtype) {
  if (dtype == DType::f32) return std::numeric_limits<float>::epsilon();
  return dtype == DType::bf16 ? 1.0 / 128 : std::numeric_limits<double>::epsilon();
}

// Everything combine and its backward read, in one type.
struct Rows {
  std::int64_t tokens, num_picks, dim;
  Sorted sorted;
  std::int64_t num_rows;
  Tensor rows, weights, dy;
};

Rows make_rows(DType dtype, std::int64_t tokens, std::int64_t num_picks, std::int64_t dim) {
  Rows r{tokens, num_picks, dim, sort(random_picks(tokens, num_picks, 5, 4).view(), rotated_keys(5)),
         0,      {},        {},  {}};
  const auto* counts = r.sorted.counts.view().as<std::int64_t>();
  r.num_rows = std::accumulate(counts, counts + 5, std::int64_t{0});
  r.rows = random_tensor(dtype, {r.num_rows, dim}, 11);
  r.weights = random_tensor(accumulator_of(dtype), {tokens, num_picks}, 12);
  r.dy = random_tensor(dtype, {tokens, dim}, 13);
  return r;
}

// Bound: K products and sums in the accumulator type and one rounding to the type of y.
TEST(CombineRows, SumsWeightedRowsAndSkipsDroppedPicks) {
  Stream stream;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64})
    for (const std::int64_t dim : {1, 33, 1100}) {
      const Rows r = make_rows(dtype, 40, 3, dim);
      const Tensor y = unwritten(dtype, {r.tokens, dim});
      ops::combine_rows_forward(stream, r.rows.view(), r.sorted.position.view(), r.weights.view(), y.view());
      const auto* position = r.sorted.position.view().as<std::int32_t>();
      bool seen_empty = false;
      for (std::int64_t t = 0; t < r.tokens; ++t)
        for (std::int64_t d = 0; d < dim; ++d) {
          double want = 0.0, size = 0.0;
          for (std::int64_t pick = t * 3; pick < t * 3 + 3; ++pick) {
            if (position[pick] < 0) continue;
            const double term =
                element(r.weights.view(), pick) * element(r.rows.view(), position[pick] * dim + d);
            want += term;
            size += std::abs(term);
          }
          seen_empty = seen_empty || size == 0.0;
          ASSERT_LE(std::abs(element(y.view(), t * dim + d) - want),
                    3 * eps_of(accumulator_of(dtype)) * size + eps_of(dtype) * std::abs(want));
        }
      EXPECT_TRUE(seen_empty) << "the case must hold a token without picks, whose row is exactly zero";
    }
}

TEST(CombineRows, GradientsMatchFiniteDifferences) {
  Stream stream;
  const Rows r = make_rows(DType::f64, 12, 3, 5);
  const Tensor y = unwritten(DType::f64, {r.tokens, r.dim}), d_rows = unwritten(DType::f64, r.rows.shape());
  const Tensor d_weights = unwritten(DType::f64, r.weights.shape());
  const auto loss = [&] {
    ops::combine_rows_forward(stream, r.rows.view(), r.sorted.position.view(), r.weights.view(), y.view());
    return test::dot(y.view(), r.dy.view());
  };
  ops::combine_rows_backward(stream, r.dy.view(), r.rows.view(), r.sorted.position.view(),
                             r.sorted.order.view(), r.weights.view(), d_rows.view(), d_weights.view());
  EXPECT_TRUE(test::gradient_matches(loss, r.rows.view(), d_rows.view()));
  EXPECT_TRUE(test::gradient_matches(loss, r.weights.view(), d_weights.view()));
}

TEST(DispatchRows, BackwardIsTheTransposeOfTheGather) {
  Stream stream;
  const Rows r = make_rows(DType::f64, 12, 3, 5);
  const Tensor x = random_tensor(DType::f64, {r.tokens, r.dim}, 21);
  const Tensor d_sent = random_tensor(DType::f64, {r.num_rows, r.dim}, 22);
  const Tensor sent = unwritten(DType::f64, {r.num_rows, r.dim}), dx = unwritten(DType::f64, x.shape());
  const auto loss = [&] {
    ops::gather_rows(stream, x.view(), r.sorted.order.view().rows(0, r.num_rows), r.num_picks, sent.view());
    return test::dot(sent.view(), d_sent.view());
  };
  ops::dispatch_rows_backward(stream, d_sent.view(), r.sorted.position.view(), dx.view());
  EXPECT_TRUE(test::gradient_matches(loss, x.view(), dx.view()));
}

// Bound for the dot products of d_weights: D products and sums in the accumulator type.
TEST(CombineRows, BackwardInF32AndBf16AgreesWithDouble) {
  Stream stream;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Rows r = make_rows(dtype, 64, 2, 257);
    const DType accumulator = accumulator_of(dtype);
    const Tensor d_rows = unwritten(dtype, r.rows.shape());
    const Tensor d_weights = unwritten(accumulator, r.weights.shape());
    ops::combine_rows_backward(stream, r.dy.view(), r.rows.view(), r.sorted.position.view(),
                               r.sorted.order.view(), r.weights.view(), d_rows.view(), d_weights.view());
    const auto* position = r.sorted.position.view().as<std::int32_t>();
    for (std::int64_t pick = 0; pick < r.tokens * 2; ++pick) {
      const double weight = element(r.weights.view(), pick);
      double want = 0.0, size = 0.0;
      for (std::int64_t d = 0; d < r.dim && position[pick] >= 0; ++d) {
        const double g = element(r.dy.view(), pick / 2 * r.dim + d);
        const double term = g * element(r.rows.view(), position[pick] * r.dim + d);
        want += term;
        size += std::abs(term);
        ASSERT_LE(std::abs(element(d_rows.view(), position[pick] * r.dim + d) - weight * g),
                  2 * eps_of(dtype) * std::abs(weight * g));
      }
      ASSERT_LE(std::abs(element(d_weights.view(), pick) - want),
                static_cast<double>(r.dim) * eps_of(accumulator) * size);
    }
  }
}

TEST(Permute, ThreadsDoNotChangeBits) {
  Stream stream;
  const int before = omp_get_max_threads();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    std::vector<Tensor> first;
    for (const int threads : {1, 2, 3}) {
      omp_set_num_threads(threads);
      const Rows r = make_rows(dtype, 4000, 3, 96);
      Tensor y(dtype, {r.tokens, r.dim}), d_rows(dtype, r.rows.shape()), dx(dtype, {r.tokens, r.dim});
      Tensor d_weights(DType::f32, r.weights.shape());
      ops::combine_rows_forward(stream, r.rows.view(), r.sorted.position.view(), r.weights.view(), y.view());
      ops::combine_rows_backward(stream, r.dy.view(), r.rows.view(), r.sorted.position.view(),
                                 r.sorted.order.view(), r.weights.view(), d_rows.view(), d_weights.view());
      ops::dispatch_rows_backward(stream, r.rows.view(), r.sorted.position.view(), dx.view());
      std::vector<Tensor> now;
      for (const TensorView t : {r.sorted.order.view(), r.sorted.position.view(), y.view(), d_rows.view(),
                                 d_weights.view(), dx.view()})
        now.push_back(copy_of(t));
      if (first.empty()) first = std::move(now);
      for (std::size_t i = 0; i < now.size(); ++i)
        EXPECT_TRUE(same_bits(first[i].view(), now[i].view())) << "result " << i << ", threads " << threads;
    }
  }
  omp_set_num_threads(before);
}

}  // namespace
}  // namespace moecollab
