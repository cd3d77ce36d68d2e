#include "moecollab/ops/route_top_k.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "moecollab/core/error.hpp"
#include "moecollab/numerics/routing.hpp"
#include "ops/routing_case.hpp"
#include "support/gradient_check.hpp"

namespace moecollab {
namespace {

using namespace routing_case;  // NOLINT: the test's own vocabulary
using ops::BalanceLosses;
using test::same_bits;

// One token by the definitions, with a full sort; `margin` is the gap between the last score that was picked
// and the first that was not.
struct Reference {
  std::vector<std::size_t> picks;
  std::vector<double> weights, probs;
  double lse = 0, margin = 0;
};
Reference reference(const std::vector<double>& z, const std::vector<double>& bias,
                    const RouterOptions& options) {
  Reference r;
  double sum = 0.0, sigmoids = 0.0;
  for (const double v : z) {
    sum += std::exp(v);
    sigmoids += 1.0 / (1.0 + std::exp(-v));
  }
  r.lse = std::log(sum);
  std::vector<double> score, key;
  for (std::size_t e = 0; e < z.size(); ++e) {
    const double s = 1.0 / (1.0 + std::exp(-z[e])), p = std::exp(z[e]) / sum;
    score.push_back(options.scoring == Scoring::sigmoid ? s : p);
    r.probs.push_back(options.scoring == Scoring::sigmoid ? s / sigmoids : p);
    key.push_back((options.scoring == Scoring::softmax_after_top_k ? z[e] : score[e]) + bias[e]);
  }
  std::vector<std::size_t> order(z.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return key[a] > key[b]; });
  const auto k = static_cast<std::size_t>(options.top_k);
  r.margin = 1.0;
  for (std::size_t i = 0; i < k && i + 1 < order.size(); ++i)
    r.margin = std::min(r.margin, key[order[i]] - key[order[i + 1]]);
  r.picks.assign(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k));
  double picked = 0.0;
  for (const std::size_t e : r.picks) picked += score[e];
  const bool divide = options.renormalise || options.scoring == Scoring::softmax_after_top_k;
  for (const std::size_t e : r.picks)
    r.weights.push_back(options.scaling * score[e] / (divide ? picked : 1.0));
  return r;
}

// Bound: sums of E terms (all positive), an exponential of an argument of size |z| < 8, and a few roundings:
// (E + 16) eps, relative; lse absolute with its size.
TEST(RouteTopK, ForwardIsTheDefinition) {
  for (const DType dtype : {DType::f32, DType::f64})
    for (const Scoring scoring : kScorings)
      for (const bool renormalise : {false, true})
        for (const std::int64_t experts : {1, 2, 5, 64, 256})
          for (const bool biased : {false, true}) {
            const RouterOptions options{std::min<std::int64_t>(experts, 3), scoring, renormalise, 2.5};
            const std::int64_t tokens = 23, k = options.top_k;
            const Tensor logits = random_tensor(dtype, {tokens, experts}, 5, 1.5);
            const Tensor bias = random_tensor(dtype, {experts}, 6, 0.3), valid = make_valid(tokens);
            const Routed routed =
                route(logits.view(), biased ? bias.view() : TensorView{}, valid.view(), options);
            const double eps = (dtype == DType::f32 ? std::numeric_limits<float>::epsilon()
                                                    : std::numeric_limits<double>::epsilon()) *
                               (static_cast<double>(experts) + 16.0);
            std::int64_t close = 0;
            for (std::int64_t t = 0; t < tokens; ++t) {
              const auto* picks = routed.picks.view().as<std::int32_t>() + t * k;
              if (valid.view().as<std::uint8_t>()[t] == 0) {
                for (std::int64_t i = 0; i < k; ++i) {
                  EXPECT_EQ(picks[i], -1);
                  EXPECT_EQ(at(routed.weights.view(), t * k + i), 0.0);
                }
                for (std::int64_t e = 0; e < experts; ++e)
                  EXPECT_EQ(at(routed.probs.view(), t * experts + e), 0.0);
                continue;
              }
              std::vector<double> z, b;
              for (std::int64_t e = 0; e < experts; ++e) {
                z.push_back(at(logits.view(), t * experts + e));
                b.push_back(biased ? at(bias.view(), e) : 0.0);
              }
              const Reference want = reference(z, b, options);
              EXPECT_NEAR(at(routed.lse.view(), t), want.lse, eps * std::max(1.0, std::abs(want.lse)));
              for (std::size_t e = 0; e < z.size(); ++e)
                EXPECT_NEAR(at(routed.probs.view(), t * experts + static_cast<std::int64_t>(e)),
                            want.probs[e], eps * want.probs[e]);
              if (want.margin < eps) {  // too close for f32 to tell apart
                ++close;
                continue;
              }
              for (std::size_t i = 0; i < want.picks.size(); ++i) {
                EXPECT_EQ(picks[i], static_cast<std::int32_t>(want.picks[i]));
                EXPECT_NEAR(at(routed.weights.view(), t * k + static_cast<std::int64_t>(i)), want.weights[i],
                            eps * want.weights[i]);
              }
            }
            EXPECT_LE(close, 2);
          }
}

template <class T>
std::vector<std::int32_t> picks_of(const std::vector<T>& z, const std::vector<T>& bias, Scoring scoring,
                                   std::int64_t k) {
  const auto experts = static_cast<std::int64_t>(z.size());
  Tensor logits(DTypeOf<T>::value, {1, experts}), biases(DTypeOf<T>::value, {experts});
  std::copy(z.begin(), z.end(), logits.view().template as<T>());
  std::copy(bias.begin(), bias.end(), biases.view().template as<T>());
  const Routed routed = route(logits.view(), bias.empty() ? TensorView{} : biases.view(), {}, {k, scoring});
  const auto* picks = routed.picks.view().template as<std::int32_t>();
  return {picks, picks + k};
}

TEST(RouteTopK, LowerIdWinsATie) {
  using Ids = std::vector<std::int32_t>;
  for (const Scoring scoring : kScorings) {
    EXPECT_EQ((picks_of<float>({1, 1, 1, 1, 1}, {}, scoring, 3)), (Ids{0, 1, 2}));
    EXPECT_EQ((picks_of<float>({0, 2, 1, 2, 2}, {}, scoring, 3)), (Ids{1, 3, 4}));
    EXPECT_EQ((picks_of<float>({0, 1, 2, 1, 2}, {}, scoring, 3)), (Ids{2, 4, 1}));
    EXPECT_EQ((picks_of<double>({1, 1, 1, 1}, {0, 0.5, 0, 0.5}, scoring, 3)), (Ids{1, 3, 0}));
    // All saturate to 1 (or vanish) as f32 scores, but the logits differ.
    EXPECT_EQ((picks_of<float>({100, 300, 200, 400}, {}, scoring, 2)), (Ids{3, 1}));
    EXPECT_EQ((picks_of<float>({-400, -100, -300, -200}, {}, scoring, 3)), (Ids{1, 3, 2}));
  }
}

TEST(RouteTopK, BiasSelectsButDoesNotWeigh) {
  for (const Scoring scoring : kScorings) {
    Tensor logits(DType::f64, {1, 3}), bias(DType::f64, {3});
    std::copy_n(std::vector<double>{2.0, 1.0, 0.0}.data(), 3, logits.view().as<double>());
    bias.view().as<double>()[2] = 10.0;
    const Routed routed = route(logits.view(), bias.view(), {}, {2, scoring});
    EXPECT_EQ(routed.picks.view().as<std::int32_t>()[0], 2);
    EXPECT_EQ(routed.picks.view().as<std::int32_t>()[1], 0);
    const double high = scoring == Scoring::sigmoid ? 1.0 / (1.0 + std::exp(-2.0)) : std::exp(2.0);
    const double low = scoring == Scoring::sigmoid ? 0.5 : 1.0;
    EXPECT_NEAR(routed.weights.view().as<double>()[0], low / (low + high), 1e-15);
  }
}

// Scores that have saturated still choose by their logits.
TEST(RouteTopK, BiasOfZerosIsNone) {
  Tensor logits(DType::f32, {1, 4});
  const std::vector<float> z{30, 50, 40, 60};
  std::copy(z.begin(), z.end(), logits.view().as<float>());
  Tensor bias(DType::f32, {4});
  for (const Scoring scoring : kScorings) {
    const auto picks = [&] {
      const Routed routed = route(logits.view(), bias.view(), {}, {3, scoring});
      const auto* p = routed.picks.view().as<std::int32_t>();
      return std::vector<std::int32_t>(p, p + 3);
    };
    bias.view().as<float>()[0] = 0.0f;
    EXPECT_EQ(picks(), (std::vector<std::int32_t>{3, 1, 2}));
    bias.view().as<float>()[0] = 100.0f;
    EXPECT_EQ(picks()[0], 0);
  }
}

// Whatever the logits hold, picks are distinct experts and the same again; a NaN shows in weights and lse.
TEST(RouteTopK, BrokenLogitsChooseDeterministically) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const std::vector<std::vector<float>> rows{
      {nan, nan, nan, nan}, {nan, 1, 2, 3}, {1, nan, inf, -inf}, {inf, inf, 0, 1}, {-inf, -inf, -inf, 0}};
  for (const Scoring scoring : kScorings)
    for (const auto& row : rows)
      for (const std::int64_t k : {1, 2, 4}) {
        const auto picks = picks_of<float>(row, {}, scoring, k);
        EXPECT_EQ(picks, picks_of<float>(row, {}, scoring, k));
        const std::set<std::int32_t> distinct(picks.begin(), picks.end());
        EXPECT_EQ(distinct.size(), static_cast<std::size_t>(k));
        EXPECT_GE(*distinct.begin(), 0);
        EXPECT_LT(*distinct.rbegin(), 4);
        if (std::isnan(row[0]) && row[1] == 1.0f) {
          EXPECT_EQ(picks[0], 3) << "NaN stands last";
        }
      }
  Tensor logits(DType::f32, {1, 4});
  std::copy(rows[1].begin(), rows[1].end(), logits.view().as<float>());
  EXPECT_TRUE(std::isnan(route(logits.view(), {}, {}, {2}).lse.view().as<float>()[0]));
}

// An expert that is switched off by a logit of minus infinity, and scores that underflow, give numbers.
TEST(RouteTopK, ExtremeLogitsStayFinite) {
  Stream stream;
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<std::vector<float>> rows{
      {-inf, 1, 2, 3}, {-200, -300, -250, -1000}, {900, -900, 0, 899}, {-inf, 80, -80, -inf}};
  const BalanceOptions balance{0.1, 0.1, 0.1, 0.1};
  for (const Scoring scoring : kScorings)
    for (const bool renormalise : {false, true})
      for (const auto& row : rows) {
        const RouterOptions options{2, scoring, renormalise};
        Tensor logits(DType::f32, {1, 4}), d_logits(DType::f32, {1, 4});
        std::copy(row.begin(), row.end(), logits.view().as<float>());
        const Routed routed = route(logits.view(), {}, {}, options);
        const Tensor d_weights = random_tensor(DType::f32, {1, 2}, 3);
        const Tensor sums = sums_of(routed, {});
        ops::route_top_k_backward(stream, d_weights.view(), logits.view(), routed.picks.view(),
                                  routed.probs.view(), routed.lse.view(), {}, sums.view(), 1, 1.0, options,
                                  balance, d_logits.view());
        for (std::int64_t i = 0; i < 2; ++i) EXPECT_TRUE(std::isfinite(at(routed.weights.view(), i)));
        for (std::int64_t e = 0; e < 4; ++e) {
          EXPECT_TRUE(std::isfinite(at(routed.probs.view(), e)));
          EXPECT_TRUE(std::isfinite(at(d_logits.view(), e)));
        }
        for (std::int64_t i = 0; i < sums.shape().numel(); ++i)
          EXPECT_TRUE(std::isfinite(at(sums.view(), i)));
      }
}

TEST(RouteTopK, ThreadsDoNotChangeBits) {
  const int before = omp_get_max_threads();
  for (const Scoring scoring : kScorings) {
    const Problem problem =
        make_problem(DType::f32, 1500, 24, {3, scoring, false}, {0.7, 0.3, 0.9, 1.1}, true);
    std::vector<Tensor> first;
    for (const int threads : {1, 2, 3}) {
      omp_set_num_threads(threads);
      std::vector<Tensor> now;
      Routed routed = problem.forward();
      now.push_back(sums_of(routed, problem.valid.view()));
      now.push_back(problem.backward(routed, now[0].view()));
      now.push_back(std::move(routed.picks));
      now.push_back(std::move(routed.weights));
      now.push_back(std::move(routed.probs));
      now.push_back(std::move(routed.lse));
      if (first.empty()) first = std::move(now);
      for (std::size_t i = 0; i < now.size(); ++i)
        EXPECT_TRUE(same_bits(now[i].view(), first[i].view())) << "result " << i << ", threads " << threads;
    }
  }
  omp_set_num_threads(before);
}

// Whatever the rows of padding hold, and on top of what the sums held before.
TEST(RoutingSums, AddValidTokensOnly) {
  Stream stream;
  const std::int64_t tokens = 600, experts = 3;
  const Tensor probs = random_tensor(DType::f64, {tokens, experts}, 1), valid = make_valid(tokens);
  const Tensor lse = random_tensor(DType::f64, {tokens}, 2);
  Tensor picks(DType::i32, {tokens, 2});
  Tensor sums(DType::f64, {2 * experts + 2});
  std::fill_n(sums.view().as<double>(), 2 * experts + 2, 5.0);
  std::vector<double> want(static_cast<std::size_t>(2 * experts + 2), 5.0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    auto* pick = picks.view().as<std::int32_t>() + t * 2;
    pick[0] = static_cast<std::int32_t>(t % experts);
    pick[1] = t % 7 == 0 ? -1 : static_cast<std::int32_t>((t + 1) % experts);
    double* p = probs.view().as<double>() + t * experts;
    for (std::int64_t e = 0; e < experts; ++e) p[e] = std::abs(p[e]);
    if (valid.view().as<std::uint8_t>()[t] == 0) continue;
    for (int k = 0; k < 2; ++k)
      if (pick[k] >= 0) want[static_cast<std::size_t>(pick[k])] += 1.0;
    for (std::int64_t e = 0; e < experts; ++e) {
      want[static_cast<std::size_t>(experts + e)] += p[e];
      want[static_cast<std::size_t>(2 * experts)] -= p[e] * std::log(p[e]);
    }
    want[static_cast<std::size_t>(2 * experts + 1)] += at(lse.view(), t) * at(lse.view(), t);
  }
  ops::routing_sums(stream, picks.view(), probs.view(), lse.view(), valid.view(), sums.view());
  for (std::int64_t i = 0; i < 2 * experts + 2; ++i)  // n = 3 N terms, partial sums below 2000
    EXPECT_NEAR(at(sums.view(), i), want[static_cast<std::size_t>(i)],
                3 * 600 * std::numeric_limits<double>::epsilon() * 2000);
}

Tensor make_sums(const std::vector<double>& values) {
  Tensor sums(DType::f64, {static_cast<std::int64_t>(values.size())});
  std::copy(values.begin(), values.end(), sums.view().as<double>());
  return sums;
}

TEST(BalanceLosses, KnownCases) {
  const BalanceOptions options{0.5, 0.25, 2.0, 3.0};
  // Four tokens, two experts, one pick each: perfectly even, undecided tokens, lse = 2.
  const double ln2 = std::log(2.0);
  BalanceLosses losses = ops::balance_losses(make_sums({2, 2, 2, 2, 4 * ln2, 16}).view(), 2, 1, 4, options);
  EXPECT_DOUBLE_EQ(losses.balance, 0.5);  // its minimum is the coefficient
  EXPECT_DOUBLE_EQ(losses.z_loss, 1.0);
  EXPECT_DOUBLE_EQ(losses.token_entropy, 1.0);
  EXPECT_DOUBLE_EQ(losses.batch_entropy, 1.0);
  EXPECT_DOUBLE_EQ(losses.entropy, 2.0 - 3.0);
  EXPECT_DOUBLE_EQ(losses.total(), 0.5);
  // All tokens certain of the first expert.
  losses = ops::balance_losses(make_sums({4, 0, 4, 0, 0, 0}).view(), 2, 1, 4, options);
  EXPECT_DOUBLE_EQ(losses.balance, 1.0);  // E times the minimum
  EXPECT_EQ(losses.token_entropy, 0.0);
  EXPECT_EQ(losses.batch_entropy, 0.0);
  // A single expert: ln E = 0 divides nothing.
  losses = ops::balance_losses(make_sums({4, 4, 0, 4}).view(), 1, 1, 4, options);
  EXPECT_DOUBLE_EQ(losses.balance, 0.5);
  EXPECT_DOUBLE_EQ(losses.total(), 0.75);
  EXPECT_THROW(ops::balance_losses(make_sums({0, 0, 0, 0}).view(), 1, 1, 0, options), ShapeError);
}

// 2 ulp of ln x, measured against the logarithm in double.
TEST(RoutingNumerics, LogIsExactToTwoUnits) {
  double worst = 0.0;
  for (float x = 1.2e-38f; x < 3.0f; x *= 1.0007f) {
    const double want = std::log(static_cast<double>(x));
    worst = std::max(worst, std::abs(numerics::log_prob(x) - want) / std::max(std::abs(want), 1e-30));
  }
  EXPECT_LE(worst, 2.0 * std::numeric_limits<float>::epsilon());
  EXPECT_EQ(numerics::log_prob(1.0f), 0.0f);
  EXPECT_EQ(numerics::p_log_p(0.0f), 0.0f);
  EXPECT_EQ(numerics::p_log_p(0.0), 0.0);
  EXPECT_LE(std::abs(numerics::p_log_p(1e-40f)), 1e-38f);
  EXPECT_TRUE(std::isnan(numerics::p_log_p(std::numeric_limits<float>::quiet_NaN())));
}

TEST(RouteTopK, BrokenPromisesAreNamed) {
  const Tensor logits = random_tensor(DType::f32, {3, 4}, 1);
  EXPECT_THROW(route(logits.view(), {}, {}, {5}), ShapeError);
  EXPECT_THROW(route(random_tensor(DType::bf16, {3, 4}, 1).view(), {}, {}, {2}), DTypeError);
  EXPECT_THROW(route(logits.view(), random_tensor(DType::f32, {3}, 1).view(), {}, {2}), ShapeError);
  EXPECT_THROW(route(logits.view(), {}, make_valid(4).view(), {2}), ShapeError);
}

}  // namespace
}  // namespace moecollab
