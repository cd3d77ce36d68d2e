#include <gtest/gtest.h>

#include <cmath>
#include <iterator>
#include <limits>

#include "moecollab/ops/route_top_k.hpp"
#include "ops/routing_case.hpp"
#include "support/gradient_check.hpp"

namespace moecollab {
namespace {

using namespace routing_case;  // NOLINT: the test's own vocabulary
using ops::BalanceLosses;
using test::same_bits;

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

// The last of three picks taken away leaves what two picks give.
TEST(RouteTopK, PicksOfNoneGetNoGradient) {
  const std::int64_t tokens = 6;
  for (const Scoring scoring : kScorings)
    for (const bool renormalise : {false, true}) {
      const Problem two = make_problem(DType::f64, tokens, 5, {2, scoring, renormalise}, {}, false);
      const Problem three = make_problem(DType::f64, tokens, 5, {3, scoring, renormalise}, {}, false);
      const Routed of_two = two.forward(), of_three = three.forward();
      for (std::int64_t t = 0; t < tokens; ++t) {
        of_three.picks.view().as<std::int32_t>()[t * 3 + 2] = -1;
        double* d = three.d_weights.view().as<double>() + t * 3;
        for (std::int64_t k = 0; k < 2; ++k) d[k] = two.d_weights.view().as<double>()[t * 2 + k];
        d[2] = 0.0;
      }
      const Tensor sums = sums_of(of_two, two.valid.view());
      EXPECT_TRUE(
          same_bits(three.backward(of_three, sums.view()).view(), two.backward(of_two, sums.view()).view()));
    }
}

TEST(RouteTopK, ASingleExpertHasNoAuxiliaryGradient) {
  const Problem problem = make_problem(DType::f64, 5, 1, {1}, {0.7, 0, 0.9, 1.1}, false);
  const Routed routed = problem.forward();
  const Tensor d_logits = problem.backward(routed, sums_of(routed, problem.valid.view()).view());
  EXPECT_EQ(test::max_abs(d_logits.view()), 0.0);
}

}  // namespace
}  // namespace moecollab
