#include "moecollab/ops/permute.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <string>
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

Sorted sort(ConstTensorView picks, const std::vector<std::int32_t>& keys, std::int64_t rows_per_key = 0,
            const std::vector<std::int64_t>& kept = {}) {
  Stream stream;
  const auto num_keys = static_cast<std::int64_t>(keys.size());
  Sorted out{Tensor(DType::i32, {rows_per_key > 0 ? num_keys * rows_per_key : picks.numel()}),
             Tensor(DType::i32, picks.shape), Tensor(DType::i64, {num_keys})};
  std::fill_n(out.counts.view().as<std::int64_t>(), keys.size(), 99);  // must be overwritten
  std::fill_n(out.order.view().as<std::int32_t>(), out.order.shape().numel(), 99);
  Tensor limits;
  if (!kept.empty()) {
    limits = Tensor(DType::i64, {num_keys});
    std::copy(kept.begin(), kept.end(), limits.view().as<std::int64_t>());
  }
  ops::sort_picks(stream, picks, keys, rows_per_key, limits.view(), out.order.view(), out.position.view(),
                  out.counts.view());
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

template <class T>
std::vector<T> values(const Tensor& tensor) {
  const auto* data = tensor.view().as<T>();
  return {data, data + tensor.shape().numel()};
}

// Packed and with room for 600 rows per key, all picks and at most `kept` of each key.
TEST(SortPicks, IsTheStableSortByKey) {
  for (const std::int64_t tokens : {0, 1, 17, 800, 2048, 5000})
    for (const std::int64_t rows_per_key : {0, 600})
      for (const std::int64_t most : {-1, 0, 100}) {
        const std::int32_t experts = 7;
        const Tensor picks = random_picks(tokens, 3, experts, 5, 4);
        const auto keys = rotated_keys(experts);
        std::vector<std::int64_t> kept;
        for (std::int64_t k = 0; most >= 0 && k < experts; ++k) kept.push_back(most * k);
        const Sorted sorted = sort(picks.view(), keys, rows_per_key, kept);

        const auto* p = picks.view().as<std::int32_t>();
        std::vector<std::vector<std::int32_t>> of_key(7);
        for (std::int32_t i = 0; i < tokens * 3; ++i)
          if (p[i] >= 0) of_key[static_cast<std::size_t>(keys[static_cast<std::size_t>(p[i])])].push_back(i);
        std::vector<std::int32_t> order, position(static_cast<std::size_t>(tokens * 3), -1);
        std::vector<std::int64_t> counts;
        for (std::size_t k = 0; k < 7; ++k) {
          counts.push_back(static_cast<std::int64_t>(of_key[k].size()));
          if (!kept.empty()) of_key[k].resize(std::min(of_key[k].size(), static_cast<std::size_t>(kept[k])));
          if (rows_per_key > 0) {
            order.resize(k * 600, -1);
            of_key[k].resize(std::min<std::size_t>(of_key[k].size(), 600));
          }
          for (const std::int32_t pick : of_key[k]) {
            position[static_cast<std::size_t>(pick)] = static_cast<std::int32_t>(order.size());
            order.push_back(pick);
          }
        }
        order.resize(static_cast<std::size_t>(rows_per_key > 0 ? experts * rows_per_key : tokens * 3), -1);
        const std::string name = std::to_string(tokens) + " tokens, rows_per_key " +
                                 std::to_string(rows_per_key) + ", kept " + std::to_string(most);
        EXPECT_EQ(values<std::int32_t>(sorted.order), order) << name;
        EXPECT_EQ(values<std::int32_t>(sorted.position), position) << name;
        EXPECT_EQ(values<std::int64_t>(sorted.counts), counts) << name;
        EXPECT_EQ(counts[static_cast<std::size_t>(keys[4])], 0);
      }
}

TEST(SortPicks, RefusesKeysThatAreNoPermutation) {
  const Tensor picks = random_picks(2, 1, 3, 0);
  EXPECT_THROW(sort(picks.view(), {0, 1, 1}), ShapeError);
  EXPECT_THROW(sort(picks.view(), {0, 1, 3}), ShapeError);
  EXPECT_THROW(sort(picks.view(), {0, 1, -1}), ShapeError);
}

TEST(ApplyCapacity, KeepsTheFirstPicksInRankOrder) {
  Stream stream;
  Tensor counts(DType::i64, {3, 4});
  const std::vector<std::int64_t> before = {5, 0, 9, 2, 1, 4, 0, 2, 3, 4, 1, 2};
  std::copy(before.begin(), before.end(), counts.view().as<std::int64_t>());
  ops::apply_capacity(stream, 6, counts.view());
  EXPECT_EQ(values<std::int64_t>(counts), (std::vector<std::int64_t>{5, 0, 6, 2, 1, 4, 0, 2, 0, 2, 0, 2}));
  EXPECT_THROW(ops::apply_capacity(stream, -1, counts.view()), ShapeError);
}

// A row as (key, source, number at the source). Which of them a rank received, in which place (-1: a gap).
using Row = std::array<std::int64_t, 3>;

// All chunkings of the expert order of a rank that holds the keys [1, 4) of 5, and the layout with gaps.
TEST(ReceivedOrders, TurnSourceOrderIntoExpertOrder) {
  Stream stream;
  const std::int64_t ranks = 3, first = 1, end = 4, keys = end - first;
  Tensor counts(DType::i64, {ranks, 5});
  auto* c = counts.view().as<std::int64_t>();
  for (std::int64_t i = 0; i < ranks * 5; ++i) c[i] = random_below(3, 1, static_cast<std::uint64_t>(i), 4);
  std::vector<Row> in_expert_order;
  for (std::int64_t key = first; key < end; ++key)
    for (std::int64_t s = 0; s < ranks; ++s)
      for (std::int64_t j = 0; j < c[s * 5 + key]; ++j) in_expert_order.push_back({key, s, j});
  const auto total = static_cast<std::int64_t>(in_expert_order.size());
  ASSERT_GT(total, 5);

  const auto check = [&](const ops::ReceivedRows& rows, const std::vector<Row>& received,
                         const std::vector<Row>& wanted) {
    Tensor expert_order(DType::i32, {static_cast<std::int64_t>(wanted.size())});
    Tensor receive_order(DType::i32, {static_cast<std::int64_t>(received.size())});
    ops::received_orders(stream, counts.view(), rows, expert_order.view(), receive_order.view());
    const auto from = values<std::int32_t>(expert_order), to = values<std::int32_t>(receive_order);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      ASSERT_EQ(from[i] < 0, wanted[i][0] < 0) << "row " << i;
      if (from[i] < 0) continue;
      EXPECT_EQ(received.at(static_cast<std::size_t>(from[i])), wanted[i]) << "row " << i;
      EXPECT_EQ(to.at(static_cast<std::size_t>(from[i])), static_cast<std::int32_t>(i));
    }
    EXPECT_EQ(std::count(to.begin(), to.end(), -1), std::count(received.begin(), received.end(), Row{-1}));
  };

  for (std::int64_t begin = 0; begin <= total; ++begin)
    for (std::int64_t stop = begin; stop <= total + 2; ++stop) {
      const std::int64_t size = std::min(stop, total) - begin;
      std::vector<Row> wanted(in_expert_order.begin() + begin, in_expert_order.begin() + begin + size);
      std::vector<Row> received = wanted;
      std::stable_sort(received.begin(), received.end(), [](auto& a, auto& b) { return a[1] < b[1]; });
      wanted.resize(static_cast<std::size_t>(stop - begin), Row{-1});
      received.resize(static_cast<std::size_t>(stop - begin), Row{-1});
      check({first, end, begin, stop, 0, 0}, received, wanted);
    }

  const std::int64_t per_block = 4, per_expert = 11;
  std::vector<Row> received(static_cast<std::size_t>(ranks * keys * per_block), Row{-1});
  std::vector<Row> wanted(static_cast<std::size_t>(keys * per_expert), Row{-1});
  std::int64_t key_now = -1, place = 0;
  for (const Row& row : in_expert_order) {
    const std::int64_t key = row[0] - first;
    place = row[0] == key_now ? place + 1 : 0;
    key_now = row[0];
    received[static_cast<std::size_t>((row[1] * keys + key) * per_block + row[2])] = row;
    wanted[static_cast<std::size_t>(key * per_expert + place)] = row;
  }
  check({first, end, 0, keys * per_expert, per_block, per_expert}, received, wanted);
}

TEST(GatherRows, PullsTheRowOfTheToken) {
  Stream stream;
  const std::int64_t tokens = 9, num_picks = 2;
  const Sorted sorted = sort(random_picks(tokens, num_picks, 4, 3).view(), rotated_keys(4));
  const auto* order = sorted.order.view().as<std::int32_t>();
  ASSERT_EQ(order[tokens * num_picks - 1], -1) << "the case must hold a row of zeros";
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64})
    for (const std::int64_t dim : {1, 5, 640}) {
      const Tensor x = random_tensor(dtype, {tokens, dim}, 3), zeros(dtype, {1, dim});
      const Tensor y = unwritten(dtype, {tokens * num_picks, dim});
      ops::gather_rows(stream, x.view(), sorted.order.view(), num_picks, y.view());
      for (std::int64_t i = 0; i < tokens * num_picks; ++i) {
        const std::int64_t t = order[i] / num_picks;
        EXPECT_TRUE(
            same_bits(y.view().rows(i, i + 1), order[i] < 0 ? zeros.view() : x.view().rows(t, t + 1)));
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

// With gaps between the keys a row has the same bits as without, forwards and backwards, and gaps get zeros.
TEST(CombineRows, GapsChangeNothing) {
  Stream stream;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::int64_t tokens = 60, num_picks = 3, dim = 19, rows_per_key = 50;
    const Tensor picks = random_picks(tokens, num_picks, 5, 4), x = random_tensor(dtype, {tokens, dim}, 5);
    const std::vector<std::int64_t> kept = {7, 50, 0, 20, 50};
    const Tensor weights = random_tensor(DType::f32, {tokens, num_picks}, 12);
    const Tensor dy = random_tensor(dtype, {tokens, dim}, 13);
    std::vector<Tensor> first;
    for (const std::int64_t per_key : {std::int64_t{0}, rows_per_key}) {
      const Sorted sorted = sort(picks.view(), rotated_keys(5), per_key, kept);
      const std::int64_t num_rows = sorted.order.shape()[0];
      const Tensor rows = unwritten(dtype, {num_rows, dim}), d_rows = unwritten(dtype, {num_rows, dim});
      Tensor y(dtype, {tokens, dim}), dx(dtype, {tokens, dim}), d_weights(DType::f32, weights.shape());
      ops::gather_rows(stream, x.view(), sorted.order.view(), num_picks, rows.view());
      ops::combine_rows_forward(stream, rows.view(), sorted.position.view(), weights.view(), y.view());
      ops::combine_rows_backward(stream, dy.view(), rows.view(), sorted.position.view(), sorted.order.view(),
                                 weights.view(), d_rows.view(), d_weights.view());
      ops::dispatch_rows_backward(stream, d_rows.view(), sorted.position.view(), dx.view());
      const Tensor zeros(dtype, {1, dim});
      for (std::int64_t i = 0; i < num_rows; ++i)
        if (sorted.order.view().as<std::int32_t>()[i] < 0) {
          EXPECT_TRUE(same_bits(rows.view().rows(i, i + 1), zeros.view()));
          EXPECT_TRUE(same_bits(d_rows.view().rows(i, i + 1), zeros.view()));
        }
      std::vector<Tensor> now;
      for (const TensorView t : {y.view(), d_weights.view(), dx.view()}) now.push_back(copy_of(t));
      if (first.empty()) first = std::move(now);
      for (std::size_t i = 0; i < now.size(); ++i)
        EXPECT_TRUE(same_bits(first[i].view(), now[i].view())) << "result " << i;
    }
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
