// Sorting picks and moving rows on the device against the host: orders are equal, rows equal to rounding.
#include "moecollab/ops/permute.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cuda/device_support.hpp"
#include "cuda/sizes.hpp"
#include "moecollab/core/random.hpp"

namespace moecollab {
namespace {

using test::absolute;
using test::converted;
using test::device_stream;
using test::place;
using test::Placed;
using test::random_tensor;
using test::same_bits;
using test::to_device;
using test::to_host;
using test::within;

class CudaPermute : public test::OnDevice {};

Tensor filled(DType dtype, const Shape& shape) {  // what must be overwritten
  Tensor out(dtype, shape);
  std::memset(out.view().data, 0x5a, static_cast<std::size_t>(out.size_bytes()));
  return out;
}

enum class Pattern { random, none, one_expert };
Tensor make_picks(std::int64_t tokens, std::int64_t top_k, std::int64_t experts, Pattern pattern) {
  Tensor picks(DType::i32, {tokens, top_k});
  for (std::int64_t i = 0; i < picks.shape().numel(); ++i) {
    const auto index = static_cast<std::uint64_t>(i);
    std::int64_t pick = random_below(7, 1, index, experts);
    if (random_below(7, 2, index, 5) == 0 || pattern == Pattern::none) pick = -1;
    if (pattern == Pattern::one_expert) pick = experts / 2;
    picks.view().as<std::int32_t>()[i] = static_cast<std::int32_t>(pick);
  }
  return picks;
}
std::vector<std::int32_t> reversed_keys(std::int64_t experts) {
  std::vector<std::int32_t> keys;
  for (std::int64_t e = 0; e < experts; ++e)
    keys.push_back(static_cast<std::int32_t>((2 * experts - 2 - e) % experts));
  return keys;
}

struct Sorted {
  Tensor order, position, counts;  // on the host
};
// With the stream's device.
Sorted sort(Stream& stream, const Tensor& picks, const std::vector<std::int32_t>& keys,
            std::int64_t rows_per_key, const Tensor& kept) {
  const bool device = stream.device() == Device::cuda;
  const auto placed = [&](const Tensor& x) { return device ? to_device(x.view()) : test::copy_of(x.view()); };
  const auto num_keys = static_cast<std::int64_t>(keys.size());
  const Shape of_order{rows_per_key > 0 ? num_keys * rows_per_key : picks.shape().numel()};
  const Tensor p = placed(picks), limits = kept.empty() ? Tensor() : placed(kept);
  const Tensor order = placed(filled(DType::i32, of_order)),
               position = placed(filled(DType::i32, picks.shape()));
  const Tensor counts = placed(filled(DType::i64, {num_keys}));
  ops::sort_picks(stream, p.view(), keys, rows_per_key, limits.view(), order.view(), position.view(),
                  counts.view());
  stream.synchronize();
  return {to_host(order.view()), to_host(position.view()), to_host(counts.view())};
}

TEST_F(CudaPermute, SortIsThatOfTheHost) {
  struct Case {
    std::int64_t tokens, top_k, experts;
    Pattern pattern = Pattern::random;
  };
  for (const Case& c : {Case{0, 2, 3}, Case{1, 1, 1}, Case{17, 3, 7}, Case{512, 2, 64}, Case{1025, 1, 8},
                        Case{1700, 3, 300}, Case{300, 16, 1024}, Case{17200, 2, 5},
                        Case{900, 2, 7, Pattern::none}, Case{900, 2, 7, Pattern::one_expert}})
    for (const std::int64_t rows_per_key : {0, 40})
      for (const bool capped : {false, true}) {
        SCOPED_TRACE(std::to_string(c.tokens) + " tokens, " + std::to_string(c.top_k) + " of " +
                     std::to_string(c.experts) + ", rows_per_key " + std::to_string(rows_per_key) +
                     (capped ? ", capped" : ""));
        const Tensor picks = make_picks(c.tokens, c.top_k, c.experts, c.pattern);
        Tensor kept;
        if (capped) kept = Tensor(DType::i64, {c.experts});
        for (std::int64_t k = 0; capped && k < c.experts; ++k)
          kept.view().as<std::int64_t>()[k] = k * 11 % 41;
        Stream host;
        const Sorted want = sort(host, picks, reversed_keys(c.experts), rows_per_key, kept);
        const Sorted have = sort(device_stream(), picks, reversed_keys(c.experts), rows_per_key, kept);
        EXPECT_TRUE(same_bits(have.order.view(), want.order.view()));
        EXPECT_TRUE(same_bits(have.position.view(), want.position.view()));
        EXPECT_TRUE(same_bits(have.counts.view(), want.counts.view()));
      }
}

Tensor make_counts(std::int64_t ranks, std::int64_t keys, std::int64_t below) {
  Tensor counts(DType::i64, {ranks, keys});
  for (std::int64_t i = 0; i < ranks * keys; ++i)
    counts.view().as<std::int64_t>()[i] = random_below(5, 3, static_cast<std::uint64_t>(i), below);
  return counts;
}

TEST_F(CudaPermute, CapacityIsThatOfTheHost) {
  for (const std::int64_t keys : {1, 7, 300})
    for (const std::int64_t capacity : {0, 9, 1000}) {
      const Tensor want = make_counts(5, keys, 8), have = to_device(want.view());
      Stream host;
      ops::apply_capacity(host, capacity, want.view());
      ops::apply_capacity(device_stream(), capacity, have.view());
      device_stream().synchronize();
      EXPECT_TRUE(same_bits(to_host(have.view()).view(), want.view()));
    }
}

void expect_same_orders(const Tensor& counts, const Tensor& on_device, const ops::ReceivedRows& rows) {
  const std::int64_t keys = rows.end_key - rows.first_key, size = rows.end - rows.begin;
  const Shape received{rows.rows_per_block > 0 ? counts.shape()[0] * keys * rows.rows_per_block : size};
  const Tensor want_expert = filled(DType::i32, {size}), want_receive = filled(DType::i32, received);
  const Tensor expert = to_device(want_expert.view()), receive = to_device(want_receive.view());
  Stream host;
  ops::received_orders(host, counts.view(), rows, want_expert.view(), want_receive.view());
  ops::received_orders(device_stream(), on_device.view(), rows, expert.view(), receive.view());
  device_stream().synchronize();
  EXPECT_TRUE(same_bits(to_host(expert.view()).view(), want_expert.view()))
      << rows.begin << " to " << rows.end;
  EXPECT_TRUE(same_bits(to_host(receive.view()).view(), want_receive.view()))
      << rows.begin << " to " << rows.end;
}

// Every chunk of a small order, some chunks of one with more runs than a block has threads, and gaps.
TEST_F(CudaPermute, ReceivedOrdersAreThoseOfTheHost) {
  struct Case {
    std::int64_t ranks, keys, first, end, step;
  };
  for (const auto& [ranks, keys, first, end, step] :
       {Case{1, 3, 0, 3, 1}, Case{3, 5, 1, 4, 1}, Case{2, 4, 2, 2, 1}, Case{8, 60, 10, 50, 211}}) {
    const Tensor counts = make_counts(ranks, keys, 4), on_device = to_device(counts.view());
    std::int64_t total = 0;
    for (std::int64_t i = 0; i < ranks * (end - first); ++i)
      total += counts.view().as<std::int64_t>()[i % ranks * keys + first + i / ranks];
    for (std::int64_t begin = 0; begin <= total; begin += step)
      for (std::int64_t stop = begin; stop <= total + 2; stop += step)
        expect_same_orders(counts, on_device, {first, end, begin, stop, 0, 0});
    for (const std::int64_t per_expert : {1, 4, 40})
      for (const std::int64_t per_block : {1, 3})
        expect_same_orders(counts, on_device,
                           {first, end, 0, (end - first) * per_expert, per_block, per_expert});
  }
}

TEST_F(CudaPermute, GatherCopiesRows) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::u8})
    for (const std::int64_t dim : {0, 1, 6, 16, 40, 640})
      for (const std::int64_t rows : {0, 1, 53})
        for (const bool shifted : {false, true}) {
          Tensor x(dtype, {9, dim}), index(DType::i32, {rows}), want(dtype, {rows, dim});
          for (std::int64_t i = 0; i < x.size_bytes(); ++i)
            static_cast<char*>(x.view().data)[i] = static_cast<char>(i * 37 % 101);
          for (std::int64_t i = 0; i < rows; ++i)
            index.view().as<std::int32_t>()[i] =
                i % 7 == 3 ? -1
                           : static_cast<std::int32_t>(random_below(1, 1, static_cast<std::uint64_t>(i), 18));
          Stream host;
          ops::gather_rows(host, x.view(), index.view(), 2, want.view());
          const Placed from = place(x.view(), shifted),
                       to = place(filled(dtype, {rows, dim}).view(), shifted);
          const Tensor i = to_device(index.view());
          ops::gather_rows(device_stream(), from.view, i.view(), 2, to.view);
          device_stream().synchronize();
          EXPECT_TRUE(same_bits(to_host(to.view).view(), want.view()))
              << dim << " columns, " << rows << " rows";
        }
}

double eps_of(DType dtype) { return dtype == DType::f32 ? std::numeric_limits<float>::epsilon() : 1.0 / 128; }

// What combine and its backward read, and what they give in double on the host; sizes are the same of
// absolute values.
struct Rows {
  Sorted sorted;
  Tensor rows, weights, dy;
};
Rows make_rows(DType dtype, std::int64_t tokens, std::int64_t top_k, std::int64_t dim,
               std::int64_t rows_per_key) {
  Stream host;
  Rows r{sort(host, make_picks(tokens, top_k, 5, Pattern::random), reversed_keys(5), rows_per_key, {}),
         {},
         {},
         {}};
  const std::int64_t num_rows = r.sorted.order.shape()[0];
  r.rows = random_tensor(dtype, {num_rows, dim}, 11);
  r.weights = random_tensor(DType::f32, {tokens, top_k}, 12);
  r.dy = random_tensor(dtype, {tokens, dim}, 13);
  return r;
}
struct Combined {
  Tensor y, dx, d_rows, d_weights;
};
Combined combine(Stream& stream, ConstTensorView rows, ConstTensorView weights, ConstTensorView dy,
                 ConstTensorView position, ConstTensorView order, Combined out) {
  ops::combine_rows_forward(stream, rows, position, weights, out.y.view());
  ops::dispatch_rows_backward(stream, rows, position, out.dx.view());
  ops::combine_rows_backward(stream, dy, rows, position, order, weights, out.d_rows.view(),
                             out.d_weights.view());
  stream.synchronize();
  return out;
}
Combined combine_in_double(const Rows& r, bool sizes) {
  const auto of = [&](const Tensor& x) {
    return sizes ? absolute(x.view()) : converted(x.view(), DType::f64);
  };
  Stream host;
  Combined out{Tensor(DType::f64, r.dy.shape()), Tensor(DType::f64, r.dy.shape()),
               Tensor(DType::f64, r.rows.shape()), Tensor(DType::f64, r.weights.shape())};
  return combine(host, of(r.rows).view(), of(r.weights).view(), of(r.dy).view(), r.sorted.position.view(),
                 r.sorted.order.view(), std::move(out));
}

// Bounds: K products and sums, D of them for a weight, in f32, and a rounding to the type of the rows.
TEST_F(CudaPermute, CombineAndItsBackwardAgreeWithTheHost) {
  struct Case {
    std::int64_t tokens, top_k, dim, rows_per_key;
  };
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const auto& [tokens, top_k, dim, rows_per_key] :
         {Case{0, 2, 8, 0}, Case{0, 2, 8, 3}, Case{1, 1, 1, 0}, Case{30, 2, 6, 0}, Case{30, 3, 16, 25},
          Case{20, 8, 64, 0}, Case{9, 2, 33, 10}, Case{7, 2, 640, 0}, Case{3, 1, 1100, 3}})
      for (const bool shifted : {false, true}) {
        SCOPED_TRACE(std::to_string(tokens) + " tokens, " + std::to_string(top_k) + " picks, dim " +
                     std::to_string(dim) + (dtype == DType::f32 ? " f32" : " bf16") +
                     (shifted ? " shifted" : ""));
        const Rows r = make_rows(dtype, tokens, top_k, dim, rows_per_key);
        const Combined want = combine_in_double(r, false), size = combine_in_double(r, true);
        const Placed rows = place(r.rows.view(), shifted), dy = place(r.dy.view(), shifted);
        const Tensor weights = to_device(r.weights.view()), position = to_device(r.sorted.position.view());
        const Tensor order = to_device(r.sorted.order.view());
        const auto run = [&] {
          return combine(
              device_stream(), rows.view, weights.view(), dy.view, position.view(), order.view(),
              {to_device(filled(dtype, r.dy.shape()).view()), to_device(filled(dtype, r.dy.shape()).view()),
               to_device(filled(dtype, r.rows.shape()).view()),
               to_device(filled(DType::f32, r.weights.shape()).view())});
        };
        const Combined have = run(), again = run();
        const double sum = (static_cast<double>(top_k) + 1) * eps_of(DType::f32), last = eps_of(dtype);
        EXPECT_TRUE(within(have.y.view(), want.y.view(), sum, size.y.view(), last));
        EXPECT_TRUE(within(have.dx.view(), want.dx.view(), sum, size.dx.view(), last));
        EXPECT_TRUE(within(have.d_rows.view(), want.d_rows.view(), 0, size.d_rows.view(), 2 * last));
        EXPECT_TRUE(within(have.d_weights.view(), want.d_weights.view(),
                           static_cast<double>(dim) * eps_of(DType::f32), size.d_weights.view(), 0));
        EXPECT_TRUE(same_bits(to_host(again.y.view()).view(), to_host(have.y.view()).view()));
        EXPECT_TRUE(same_bits(to_host(again.d_weights.view()).view(), to_host(have.d_weights.view()).view()));
      }
}

// With gaps between the keys a row has the same bits as without, forwards and backwards.
TEST_F(CudaPermute, GapsChangeNothing) {
  Stream& stream = device_stream();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::int64_t tokens = 60, top_k = 3, dim = 24;
    const Tensor picks = make_picks(tokens, top_k, 5, Pattern::random);
    const Tensor x = to_device(random_tensor(dtype, {tokens, dim}, 5).view());
    const Tensor weights = to_device(random_tensor(DType::f32, {tokens, top_k}, 12).view());
    const Tensor dy = to_device(random_tensor(dtype, {tokens, dim}, 13).view());
    Tensor kept(DType::i64, {5});
    for (std::int64_t k = 0; k < 5; ++k) kept.view().as<std::int64_t>()[k] = k * 12;
    std::vector<Tensor> first;
    for (const std::int64_t rows_per_key : {0, 50}) {
      const Sorted sorted = sort(stream, picks, reversed_keys(5), rows_per_key, kept);
      const Tensor order = to_device(sorted.order.view()), position = to_device(sorted.position.view());
      const Shape of_rows{sorted.order.shape()[0], dim};
      const Tensor rows = to_device(filled(dtype, of_rows).view());
      ops::gather_rows(stream, x.view(), order.view(), top_k, rows.view());
      const Combined c = combine(
          stream, rows.view(), weights.view(), dy.view(), position.view(), order.view(),
          {to_device(filled(dtype, x.shape()).view()), to_device(filled(dtype, x.shape()).view()),
           to_device(filled(dtype, of_rows).view()), to_device(filled(DType::f32, weights.shape()).view())});
      std::vector<Tensor> now;
      for (const Tensor* t : {&c.y, &c.dx, &c.d_weights}) now.push_back(to_host(t->view()));
      if (first.empty()) first = std::move(now);
      for (std::size_t i = 0; i < now.size(); ++i)
        EXPECT_TRUE(same_bits(first[i].view(), now[i].view())) << "result " << i;
    }
  }
}

}  // namespace
}  // namespace moecollab
