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
#include "support/gradient_check.hpp"

namespace moecollab {
namespace {

using ops::BalanceLosses;
using ops::BalanceOptions;
using ops::RouterOptions;
using ops::Scoring;
using test::random_tensor;
using test::same_bits;

constexpr Scoring kScorings[] = {Scoring::softmax_before_top_k, Scoring::softmax_after_top_k,
                                 Scoring::sigmoid};

struct Routed {
  Tensor picks, weights, probs, lse;
};

Routed route(ConstTensorView logits, ConstTensorView bias, ConstTensorView valid,
             const RouterOptions& options) {
  Stream stream;
  const std::int64_t tokens = logits.dim(0);
  Routed out{Tensor(DType::i32, {tokens, options.top_k}), Tensor(logits.dtype, {tokens, options.top_k}),
             Tensor(logits.dtype, logits.shape), Tensor(logits.dtype, {tokens})};
  ops::route_top_k_forward(stream, logits, bias, valid, options, out.picks.view(), out.weights.view(),
                           out.probs.view(), out.lse.view());
  return out;
}

Tensor sums_of(const Routed& routed, ConstTensorView valid) {
  Stream stream;
  Tensor sums(DType::f64, {2 * routed.probs.shape()[1] + 2});
  ops::routing_sums(stream, routed.picks.view(), routed.probs.view(), routed.lse.view(), valid, sums.view());
  return sums;
}

Tensor make_valid(std::int64_t tokens) {  // every fourth token is padding
  Tensor valid(DType::u8, {tokens});
  for (std::int64_t t = 0; t < tokens; ++t) valid.view().as<std::uint8_t>()[t] = t % 4 == 2 ? 0 : 1;
  return valid;
}
std::int64_t num_valid(ConstTensorView valid) {
  const auto* v = valid.as<std::uint8_t>();
  return std::accumulate(v, v + valid.numel(), std::int64_t{0});
}

double at(ConstTensorView x, std::int64_t i) {
  return x.dtype == DType::f32 ? static_cast<double>(x.as<float>()[i]) : x.as<double>()[i];
}

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

// A random group of tokens and the loss sum <d_weights, weights> + balance_scale * auxiliary losses.
struct Problem {
  RouterOptions options;
  BalanceOptions balance;
  double balance_scale;
  Tensor logits, bias, valid, d_weights;
  bool biased;

  Routed forward() const {
    return route(logits.view(), biased ? bias.view() : TensorView{}, valid.view(), options);
  }
  std::int64_t num_tokens() const { return num_valid(valid.view()); }
  Tensor backward(const Routed& routed, ConstTensorView sums) const {
    Stream stream;
    Tensor d_logits = random_tensor(logits.dtype(), logits.shape(), 99);  // must be overwritten
    ops::route_top_k_backward(stream, d_weights.view(), logits.view(), routed.picks.view(),
                              routed.probs.view(), routed.lse.view(), valid.view(), sums, num_tokens(),
                              balance_scale, options, balance, d_logits.view());
    return d_logits;
  }
};

Problem make_problem(DType dtype, std::int64_t tokens, std::int64_t experts, const RouterOptions& options,
                     const BalanceOptions& balance, bool biased) {
  Tensor valid = make_valid(tokens);
  Tensor d_weights = random_tensor(dtype, {tokens, options.top_k}, 31);
  for (std::int64_t i = 0; i < d_weights.shape().numel(); ++i)  // the contract: 0 where the pick is -1
    if (valid.view().as<std::uint8_t>()[i / options.top_k] == 0) {
      if (dtype == DType::f32)
        d_weights.view().as<float>()[i] = 0.0f;
      else
        d_weights.view().as<double>()[i] = 0.0;
    }
  return {options,
          balance,
          0.5,
          random_tensor(dtype, {tokens, experts}, 30, 1.5),
          random_tensor(dtype, {experts}, 32, 0.3),
          std::move(valid),
          std::move(d_weights),
          biased};
}

const BalanceOptions kBalances[] = {{},
                                    {0.7, 0, 0, 0},
                                    {0, 0.3, 0, 0},
                                    {0, 0, 0.9, 0},
                                    {0, 0, 0, 1.1},
                                    {0, 0, -0.4, 0},
                                    {0.7, 0.3, 0.9, 1.1}};

TEST(RouteTopK, GradientsMatchFiniteDifferences) {
  const std::int64_t tokens = 6, experts = 5;
  for (const Scoring scoring : kScorings)
    for (const bool renormalise : {false, true})
      for (const double scaling : {1.0, 2.5})
        for (const std::int64_t k : {1, 2, 3})
          for (const bool biased : {false, true})
            for (const BalanceOptions& balance : kBalances) {
              const Problem problem = make_problem(DType::f64, tokens, experts,
                                                   {k, scoring, renormalise, scaling}, balance, biased);
              const Routed base = problem.forward();
              const Tensor base_sums = sums_of(base, problem.valid.view());
              bool same_picks = true;
              const auto loss = [&] {
                const Routed routed = problem.forward();
                same_picks = same_picks && same_bits(routed.picks.view(), base.picks.view());
                const Tensor sums = sums_of(routed, problem.valid.view());
                return test::dot(routed.weights.view(), problem.d_weights.view()) +
                       problem.balance_scale *
                           ops::balance_losses(sums.view(), experts, k, problem.num_tokens(), balance)
                               .total();
              };
              const Tensor d_logits = problem.backward(base, base_sums.view());
              EXPECT_TRUE(test::gradient_matches(loss, problem.logits.view(), d_logits.view()))
                  << "scoring " << static_cast<int>(scoring) << " renormalise " << renormalise << " scaling "
                  << scaling << " K " << k << " biased " << biased << " balance "
                  << &balance - std::begin(kBalances);
              ASSERT_TRUE(same_picks) << "the step of the differences crossed a tie: choose other logits";
              for (std::int64_t i = 0; i < tokens * experts; ++i) {
                const bool padding = problem.valid.view().as<std::uint8_t>()[i / experts] == 0;
                EXPECT_TRUE(!padding || d_logits.view().as<double>()[i] == 0.0);
              }
            }
}

// Tokens spread over ranks, one of them empty: the summed statistics give the losses of one rank, and the
// gradients are the same rows. Bound: sums of N terms in another order.
TEST(RouteTopK, RanksTogetherMakeTheSameLossesAndGradients) {
  Stream stream;
  const std::int64_t tokens = 40, experts = 7, k = 2;
  for (const Scoring scoring : kScorings) {
    const Problem problem =
        make_problem(DType::f64, tokens, experts, {k, scoring}, {0.7, 0.3, 0.9, 1.1}, true);
    const Routed whole = problem.forward();
    const Tensor whole_sums = sums_of(whole, problem.valid.view());
    const Tensor whole_gradient = problem.backward(whole, whole_sums.view());

    Tensor sums(DType::f64, whole_sums.shape());
    const std::int64_t cuts[] = {0, 13, 13, 40};
    const auto of_rank = [&](int r, ConstTensorView v) { return v.rows(cuts[r], cuts[r + 1]); };
    for (int r = 0; r < 3; ++r)  // each rank adds its share, as the all-reduce does
      ops::routing_sums(stream, of_rank(r, whole.picks.view()), of_rank(r, whole.probs.view()),
                        of_rank(r, whole.lse.view()), of_rank(r, problem.valid.view()), sums.view());
    const double bound = 40 * std::numeric_limits<double>::epsilon();
    for (std::int64_t i = 0; i < sums.shape().numel(); ++i)
      EXPECT_NEAR(at(sums.view(), i), at(whole_sums.view(), i), bound * std::abs(at(whole_sums.view(), i)));

    const BalanceLosses a = ops::balance_losses(whole_sums.view(), experts, k, 30, problem.balance);
    const BalanceLosses b = ops::balance_losses(sums.view(), experts, k, 30, problem.balance);
    EXPECT_NEAR(a.total(), b.total(), bound * (a.balance + a.z_loss + 2.0));
    for (int r = 0; r < 3; ++r) {
      const std::int64_t rows = cuts[r + 1] - cuts[r];
      Tensor d_logits(DType::f64, {rows, experts});
      ops::route_top_k_backward(stream, of_rank(r, problem.d_weights.view()),
                                of_rank(r, problem.logits.view()), of_rank(r, whole.picks.view()),
                                of_rank(r, whole.probs.view()), of_rank(r, whole.lse.view()),
                                of_rank(r, problem.valid.view()), sums.view(), 30, problem.balance_scale,
                                problem.options, problem.balance, d_logits.view());
      EXPECT_LE(test::max_abs_difference(d_logits.view(), of_rank(r, whole_gradient.view())), bound);
    }
  }
}

// Bound: (2 E + 32) eps times the largest gradient: dot products over E and the scores of the forward.
TEST(RouteTopK, F32AgreesWithDouble) {
  const std::int64_t tokens = 50, experts = 64, k = 4;
  for (const Scoring scoring : kScorings)
    for (const bool renormalise : {false, true}) {
      const RouterOptions options{k, scoring, renormalise, 1.5};
      const Problem narrow = make_problem(DType::f32, tokens, experts, options, {0.7, 0.3, 0.9, 1.1}, false);
      Problem wide = make_problem(DType::f64, tokens, experts, options, {0.7, 0.3, 0.9, 1.1}, false);
      wide.logits = test::converted(narrow.logits.view(), DType::f64);
      wide.d_weights = test::converted(narrow.d_weights.view(), DType::f64);
      const Routed a = narrow.forward(), b = wide.forward();
      ASSERT_TRUE(same_bits(a.picks.view(), b.picks.view()));
      const Tensor a_sums = sums_of(a, narrow.valid.view()), b_sums = sums_of(b, wide.valid.view());
      const double bound = (2.0 * experts + 32.0) * std::numeric_limits<float>::epsilon();
      for (std::int64_t i = 0; i < a_sums.shape().numel(); ++i)
        EXPECT_NEAR(at(a_sums.view(), i), at(b_sums.view(), i), bound * std::abs(at(b_sums.view(), i)));
      const Tensor da = narrow.backward(a, a_sums.view()), db = wide.backward(b, b_sums.view());
      EXPECT_LE(test::max_abs_difference(da.view(), db.view()), bound * test::max_abs(db.view()));
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

TEST(RouteTopK, ASingleExpertHasNoAuxiliaryGradient) {
  const Problem problem = make_problem(DType::f64, 5, 1, {1}, {0.7, 0, 0.9, 1.1}, false);
  const Routed routed = problem.forward();
  const Tensor d_logits = problem.backward(routed, sums_of(routed, problem.valid.view()).view());
  EXPECT_EQ(test::max_abs(d_logits.view()), 0.0);
}

// 2 ulp of ln x, measured against the logarithm in double.
TEST(RoutingNumerics, LogIsExactToTwoUnits) {
  double worst = 0.0;
  for (float x = 1.2e-38f; x < 3.0f; x *= 1.0007f) {
    const double want = std::log(static_cast<double>(x));
    worst = std::max(worst, std::abs(numerics::log_of_normal(x) - want) / std::max(std::abs(want), 1e-30));
  }
  EXPECT_LE(worst, 2.0 * std::numeric_limits<float>::epsilon());
  EXPECT_EQ(numerics::log_of_normal(1.0f), 0.0f);
  EXPECT_EQ(numerics::p_log_p(0.0f), 0.0f);
  EXPECT_EQ(numerics::p_log_p(0.0), 0.0);
  EXPECT_EQ(numerics::p_log_p(1e-40f), 0.0f);
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
