// The gate on the device against the gate on the host: its linear map, the choice, the statistics and the
// gradient, for every scoring and every number of registers that a warp keeps its experts in.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device_support.hpp"
#include "cuda/sizes.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/ops/route_fixed.hpp"
#include "moecollab/ops/route_top_k.hpp"
#include "moecollab/ops/router_logits.hpp"
#include "ops/routing_case.hpp"

namespace moecollab {
namespace {

using namespace routing_case;  // NOLINT: the vocabulary of the gate's tests
using test::absolute;
using test::converted;
using test::device_stream;
using test::place;
using test::Placed;
using test::same_bits;
using test::to_device;
using test::to_host;
using test::within;

class CudaRouting : public test::OnDevice {};

constexpr double kEps = std::numeric_limits<float>::epsilon();

template <class T>
std::vector<T> values(const Tensor& host) {
  const auto* data = host.view().as<T>();
  return {data, data + host.shape().numel()};
}
Tensor logits_on_device(ConstTensorView x, ConstTensorView w, ConstTensorView bias, bool shifted = false) {
  const Placed dx = place(x, shifted), dw = place(w, shifted);
  const Tensor db = to_device(bias),
               out = to_device(random_tensor(DType::f32, {x.dim(0), w.dim(0)}, 9).view());
  ops::router_logits_forward(device_stream(), dx.view, dw.view, db.view(), out.view());
  device_stream().synchronize();
  return to_host(out.view());
}

// Bound: D + 1 sums of products in f32, each off by half a unit of the sum of sizes.
TEST_F(CudaRouting, LogitsAreTheProductOfTheHost) {
  struct Case {
    std::int64_t tokens, experts, dim;
  };
  for (const auto& [tokens, experts, dim] :
       {Case{0, 3, 8}, Case{1, 1, 1}, Case{1, 3, 11}, Case{37, 3, 6}, Case{33, 16, 64}, Case{70, 17, 33},
        Case{33, 64, 64}, Case{65, 130, 36}, Case{9, 300, 100}, Case{16500, 17, 4}})
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const bool shifted : {false, true}) {
        SCOPED_TRACE(std::to_string(tokens) + " x " + std::to_string(experts) + " x " + std::to_string(dim) +
                     (dtype == DType::f32 ? " f32" : " bf16") + (shifted ? " shifted" : ""));
        if (tokens > 10000 && (shifted || dtype == DType::bf16)) continue;
        const Tensor x = random_tensor(dtype, {tokens, dim}, 1);
        const Tensor w = random_tensor(DType::f32, {experts, dim}, 2),
                     b = random_tensor(DType::f32, {experts}, 3);
        Stream host;
        Tensor want(DType::f64, {tokens, experts}), size(DType::f64, {tokens, experts});
        ops::router_logits_forward(host, converted(x.view(), DType::f64).view(),
                                   converted(w.view(), DType::f64).view(),
                                   converted(b.view(), DType::f64).view(), want.view());
        ops::router_logits_forward(host, absolute(x.view()).view(), absolute(w.view()).view(),
                                   absolute(b.view()).view(), size.view());
        const Tensor have = logits_on_device(x.view(), w.view(), b.view(), shifted);
        EXPECT_TRUE(within(have.view(), want.view(), static_cast<double>(dim + 1) * kEps, size.view()));
        EXPECT_TRUE(same_bits(have.view(), logits_on_device(x.view(), w.view(), b.view(), !shifted).view()));
      }
}

// Whatever tile the shape chooses.
TEST_F(CudaRouting, MoreExpertsOrTokensLeaveTheLogitsOfOthersAlone) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::int64_t dim = 20;
    const Tensor x = random_tensor(dtype, {16390, dim}, 1), w = random_tensor(DType::f32, {70, dim}, 2);
    const Tensor bias = random_tensor(DType::f32, {70}, 3);
    const auto first = [&](std::int64_t tokens, std::int64_t experts) {
      const Tensor logits =
          logits_on_device(x.view().rows(0, tokens), w.view().rows(0, experts), bias.view().rows(0, experts));
      Tensor out(DType::f32, {5, 3});
      for (std::int64_t i = 0; i < 15; ++i)
        out.view().as<float>()[i] = logits.view().as<float>()[i / 3 * experts + i % 3];
      return out;
    };
    const Tensor want = first(5, 3);
    for (const auto& [tokens, experts] : {std::pair{5, 4}, {40, 16}, {5, 17}, {40, 70}, {16390, 17}})
      EXPECT_TRUE(same_bits(first(tokens, experts).view(), want.view())) << tokens << " x " << experts;
  }
}

// Bound: T sums in f32.
TEST_F(CudaRouting, BiasGradientIsAddedUp) {
  for (const std::int64_t tokens : {0, 1, 255, 257, 1000})
    for (const std::int64_t experts : {1, 3, 40}) {
      const Tensor d = random_tensor(DType::f32, {tokens, experts}, 1),
                   b = random_tensor(DType::f32, {experts}, 2);
      Stream host;
      const Tensor want = converted(b.view(), DType::f64), size = absolute(b.view());
      ops::router_bias_backward(host, converted(d.view(), DType::f64).view(), want.view());
      ops::router_bias_backward(host, absolute(d.view()).view(), size.view());
      const Tensor device_d = to_device(d.view());
      Tensor first;
      for (int run = 0; run < 2; ++run) {
        const Tensor have = to_device(b.view());
        ops::router_bias_backward(device_stream(), device_d.view(), have.view());
        device_stream().synchronize();
        EXPECT_TRUE(within(have.view(), want.view(), static_cast<double>(tokens + 1) * kEps, size.view()))
            << tokens << " x " << experts;
        if (run == 0) first = to_host(have.view());
        EXPECT_TRUE(same_bits(to_host(have.view()).view(), first.view()));
      }
    }
}

Tensor unwritten(DType dtype, const Shape& shape) {
  if (dtype != DType::i32) return to_device(random_tensor(dtype, shape, 77, 1e6).view());
  Tensor out(dtype, shape);
  std::fill_n(out.view().as<std::int32_t>(), shape.numel(), 99);
  return to_device(out.view());
}

Routed route_on_device(ConstTensorView logits, ConstTensorView bias, ConstTensorView valid,
                       const RouterOptions& options) {
  const Tensor z = to_device(logits), b = bias.empty() ? Tensor() : to_device(bias);
  const Tensor v = valid.empty() ? Tensor() : to_device(valid);
  const Shape of_picks{logits.dim(0), options.top_k};
  const Tensor picks = unwritten(DType::i32, of_picks), weights = unwritten(DType::f32, of_picks);
  const Tensor probs = unwritten(DType::f32, logits.shape), lse = unwritten(DType::f32, {logits.dim(0)});
  ops::route_top_k_forward(device_stream(), z.view(), b.view(), v.view(), options, picks.view(),
                           weights.view(), probs.view(), lse.view());
  device_stream().synchronize();
  return {to_host(picks.view()), to_host(weights.view()), to_host(probs.view()), to_host(lse.view())};
}

// Sums of E positive terms in another order, exponentials and a few roundings: (E + 16) eps, relative; lse
// also absolute. NaN in the same places.
void expect_same_routing(const Routed& have, const Routed& want) {
  const double factor = static_cast<double>(want.probs.shape()[1] + 16) * kEps;
  EXPECT_EQ(values<std::int32_t>(have.picks), values<std::int32_t>(want.picks));
  const auto check = [&](const Tensor& a, const Tensor& b, double floor, const char* name) {
    for (std::int64_t i = 0; i < a.shape().numel(); ++i) {
      const double x = at(a.view(), i), y = at(b.view(), i);
      if (std::isnan(x) && std::isnan(y)) continue;
      ASSERT_TRUE(x == y || std::abs(x - y) <= factor * (std::abs(y) + floor))
          << name << "[" << i << "] is " << x << ", expected " << y;
    }
  };
  check(have.weights, want.weights, 1e-30, "weights");
  check(have.probs, want.probs, 1e-30, "probs");
  check(have.lse, want.lse, 1.0, "lse");
}
void expect_same_bits(const Routed& a, const Routed& b) {
  EXPECT_TRUE(same_bits(a.picks.view(), b.picks.view()));
  EXPECT_TRUE(same_bits(a.weights.view(), b.weights.view()));
  EXPECT_TRUE(same_bits(a.probs.view(), b.probs.view()));
  EXPECT_TRUE(same_bits(a.lse.view(), b.lse.view()));
}

struct GateCase {
  std::int64_t tokens, experts, top_k;
};
constexpr GateCase kGateCases[] = {{0, 3, 2},   {1, 1, 1},    {1, 3, 3},    {37, 3, 1},  {20, 33, 5},
                                   {37, 64, 8}, {9, 128, 16}, {11, 200, 2}, {9, 300, 8}, {3, 1024, 8}};
std::string name_of(const GateCase& c, Scoring scoring, bool renormalise) {
  return std::to_string(c.tokens) + " tokens, " + std::to_string(c.top_k) + " of " +
         std::to_string(c.experts) + ", scoring " + std::to_string(static_cast<int>(scoring)) +
         (renormalise ? ", renormalised" : "");
}

TEST_F(CudaRouting, ForwardAgreesWithTheHost) {
  for (const GateCase& c : kGateCases)
    for (const Scoring scoring : kScorings)
      for (const bool renormalise : {false, true}) {
        SCOPED_TRACE(name_of(c, scoring, renormalise));
        const RouterOptions options{c.top_k, scoring, renormalise, 2.5};
        const Tensor logits = random_tensor(DType::f32, {c.tokens, c.experts}, 5, 1.5);
        const Tensor bias = random_tensor(DType::f32, {c.experts}, 6, 0.3), zeros(DType::f32, {c.experts});
        const Tensor valid = make_valid(c.tokens);
        for (const ConstTensorView& b : {ConstTensorView{}, ConstTensorView(bias.view())}) {
          const Routed have = route_on_device(logits.view(), b, valid.view(), options);
          expect_same_routing(have, route(logits.view(), b, valid.view(), options));
          expect_same_bits(have, route_on_device(logits.view(), b, valid.view(), options));
        }
        expect_same_bits(route_on_device(logits.view(), zeros.view(), {}, options),
                         route_on_device(logits.view(), {}, {}, options));
      }
}

// Ties by whole numbers and by the two zeros, NaN, infinities, rows of nothing else, and saturated scores,
// for which a bias of zeros must not choose.
TEST_F(CudaRouting, TiesAndBrokenLogitsChooseAsTheHostDoes) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float menu[] = {0.0f, -0.0f, 1.0f, 2.0f, nan, -inf, 60.0f, 70.0f, -90.0f, inf};
  for (const std::int64_t experts : {3, 40, 300})
    for (const Scoring scoring : kScorings)
      for (const int from : {0, 1, 4, 5}) {  // which part of the menu the tokens have
        const std::int64_t tokens = 12, size = from == 0 ? 4 : from == 1 ? 9 : from == 4 ? 1 : 5;
        Tensor logits(DType::f32, {tokens, experts});
        for (std::int64_t i = 0; i < tokens * experts; ++i)
          logits.view().as<float>()[i] = menu[from + static_cast<std::int64_t>(i * 7919 / 13 % size)];
        const RouterOptions options{3, scoring, true};
        const Tensor zeros(DType::f32, {experts});
        SCOPED_TRACE(std::to_string(experts) + " experts, scoring " +
                     std::to_string(static_cast<int>(scoring)) + ", menu from " + std::to_string(from));
        for (const ConstTensorView& bias : {ConstTensorView{}, ConstTensorView(zeros.view())})
          expect_same_routing(route_on_device(logits.view(), bias, {}, options),
                              route(logits.view(), bias, {}, options));
      }
}

// Counts are exact, sums of p in double to rounding; the entropy of a token is a sum of E terms in f32 on the
// host, of size at most ln E.
TEST_F(CudaRouting, SumsAgreeWithTheHost) {
  for (const GateCase& c : {GateCase{0, 3, 2}, {1, 1, 1}, {130, 3, 2}, {700, 40, 3}, {70, 300, 8}})
    for (const bool padded : {false, true}) {
      const RouterOptions options{c.top_k};
      const Tensor valid = make_valid(c.tokens);
      const ConstTensorView v = padded ? valid.view() : TensorView{};
      const Routed routed =
          route(random_tensor(DType::f32, {c.tokens, c.experts}, 5, 1.5).view(), {}, v, options);
      if (c.tokens > 2) routed.picks.view().as<std::int32_t>()[c.top_k] = -1;
      if (padded && c.tokens > 2) {  // what token 2, a padding, holds does not matter
        routed.picks.view().as<std::int32_t>()[2 * c.top_k] = 0;
        routed.probs.view().as<float>()[2 * c.experts] = 0.5f;
        routed.lse.view().as<float>()[2] = 7.0f;
      }
      const Tensor start = random_tensor(DType::f64, {2 * c.experts + 2}, 8),
                   want = test::copy_of(start.view());
      Stream host;
      ops::routing_sums(host, routed.picks.view(), routed.probs.view(), routed.lse.view(), v, want.view());
      const Tensor picks = to_device(routed.picks.view()), probs = to_device(routed.probs.view());
      const Tensor lse = to_device(routed.lse.view()), dv = padded ? to_device(v) : Tensor();
      Tensor first;
      for (int run = 0; run < 2; ++run) {
        const Tensor sums = to_device(start.view());
        ops::routing_sums(device_stream(), picks.view(), probs.view(), lse.view(), dv.view(), sums.view());
        device_stream().synchronize();
        const Tensor have = to_host(sums.view());
        EXPECT_TRUE(test::close_to(have.view().rows(0, 2 * c.experts), want.view().rows(0, 2 * c.experts),
                                   1e-12, 1e-13));
        const auto t = static_cast<double>(c.tokens), e = static_cast<double>(c.experts);
        EXPECT_TRUE(test::close_to(have.view().rows(2 * c.experts, 2 * c.experts + 2),
                                   want.view().rows(2 * c.experts, 2 * c.experts + 2),
                                   1e-12 + t * (e + 4) * kEps * std::log(e + 1), 1e-13))
            << c.tokens << " tokens, " << c.experts << " experts";
        if (run == 0) first = to_host(sums.view());
        EXPECT_TRUE(same_bits(have.view(), first.view()));
      }
    }
}

// Against the host in double. Bound: sums over E and over K in f32 of terms that add up to at most the
// largest gradient of a weight (with its factor 1.3) and 1 of the auxiliary losses.
TEST_F(CudaRouting, GradientAgreesWithTheHost) {
  for (const GateCase& c : kGateCases)
    for (const Scoring scoring : kScorings)
      for (const bool renormalise : {false, true})
        for (const BalanceOptions& balance : {BalanceOptions{}, BalanceOptions{0.7, 0.3, 0.9, 1.1}}) {
          SCOPED_TRACE(name_of(c, scoring, renormalise));
          const RouterOptions options{c.top_k, scoring, renormalise, 1.3};
          const Problem problem = make_problem(DType::f32, c.tokens, c.experts, options, balance, true);
          const Routed routed = problem.forward();
          const Tensor sums = sums_of(routed, problem.valid.view());
          if (c.tokens > 3) {  // a token that lost its last pick
            routed.picks.view().as<std::int32_t>()[4 * c.top_k - 1] = -1;
            problem.d_weights.view().as<float>()[4 * c.top_k - 1] = 0.0f;
          }
          const auto in_double = [](const Tensor& x) { return converted(x.view(), DType::f64); };
          const Tensor want(DType::f64, problem.logits.shape());
          Stream host;
          const std::int64_t num_tokens = std::max<std::int64_t>(problem.num_tokens(), 1);
          ops::route_top_k_backward(
              host, in_double(problem.d_weights).view(), in_double(problem.logits).view(),
              routed.picks.view(), in_double(routed.probs).view(), in_double(routed.lse).view(),
              problem.valid.view(), sums.view(), num_tokens, 0.5, options, balance, want.view());
          const Tensor d_weights = to_device(problem.d_weights.view()),
                       logits = to_device(problem.logits.view());
          const Tensor picks = to_device(routed.picks.view()), probs = to_device(routed.probs.view());
          const Tensor lse = to_device(routed.lse.view()), valid = to_device(problem.valid.view());
          const Tensor device_sums = to_device(sums.view());
          Tensor first;
          for (int run = 0; run < 2; ++run) {
            const Tensor d_logits = unwritten(DType::f32, problem.logits.shape());
            ops::route_top_k_backward(device_stream(), d_weights.view(), logits.view(), picks.view(),
                                      probs.view(), lse.view(), valid.view(), device_sums.view(), num_tokens,
                                      0.5, options, balance, d_logits.view());
            device_stream().synchronize();
            const double size = 1.0 + 1.3 * test::max_abs(problem.d_weights.view());
            EXPECT_TRUE(test::close_to(d_logits.view(), want.view(),
                                       static_cast<double>(c.experts + c.top_k + 16) * kEps * size));
            if (run == 0) first = to_host(d_logits.view());
            EXPECT_TRUE(same_bits(to_host(d_logits.view()).view(), first.view()));
          }
        }
}

TEST_F(CudaRouting, FixedTableIsTheSame) {
  const std::vector<std::int32_t> table = {2,  0,  -1, 1, -1, -1,
                                           -1, -1, -1, 3, 2,  1};  // four domains, three picks
  for (const std::int64_t tokens : {0, 1, 300}) {
    Tensor domains(DType::i32, {tokens});
    for (std::int64_t t = 0; t < tokens; ++t)
      domains.view().as<std::int32_t>()[t] = static_cast<std::int32_t>(t * 3 % 5) - 1;
    Tensor picks(DType::i32, {tokens, 3}), weights(DType::f32, {tokens, 3});
    Stream host;
    ops::route_fixed(host, domains.view(), table, picks.view(), weights.view());
    const Tensor d = to_device(domains.view()), p = unwritten(DType::i32, picks.shape());
    const Tensor w = unwritten(DType::f32, picks.shape());
    ops::route_fixed(device_stream(), d.view(), table, p.view(), w.view());
    device_stream().synchronize();
    EXPECT_TRUE(same_bits(to_host(p.view()).view(), picks.view()));
    EXPECT_TRUE(same_bits(to_host(w.view()).view(), weights.view()));
  }
}

TEST_F(CudaRouting, TooManyExpertsAreNamed) {
  EXPECT_THROW(route_on_device(random_tensor(DType::f32, {1, 1025}, 1).view(), {}, {}, {2}), ShapeError);
  EXPECT_THROW(route_on_device(random_tensor(DType::f32, {1, 64}, 1).view(), {}, {}, {33}), ShapeError);
}

}  // namespace
}  // namespace moecollab
