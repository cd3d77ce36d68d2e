// The scalar formulas of the gate: which expert wins, scores, and entropy terms.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "moecollab/numerics/exp.hpp"
#include "moecollab/numerics/macros.hpp"

namespace moecollab::numerics {

// What experts are ordered by: the selection score, with NaN below everything, so that the choice stays a
// total order whatever the logits hold. The higher key wins, the lower id at a tie.
template <class T>
MC_HOST_DEVICE inline T selection_key(T score) {
  return score == score ? score : -std::numeric_limits<T>::infinity();
}

// ln p of a probability, at least the logarithm of the smallest normal number: finite at p = 0, where it only
// meets a factor p. To 2 ulp, without branches, so that loops over it vectorise. With p = 2^e m, m in
// [sqrt(1/2), sqrt(2)) and s = (m - 1) / (m + 1): ln p = e ln 2 + 2 atanh s, and |s| < 0.172 makes the series
// in s^2 converge to f32 after five terms. The clamp is one of integers, which order as positive floats do:
// gcc turns the one of floats into a branch.
MC_HOST_DEVICE inline float log_prob(float p) {
  constexpr std::int32_t kSmallestNormal = 0x00800000, kHalfRoot = 0x3f3504f3;  // 2^-126, sqrt(1/2)
  const std::int32_t raw = std::bit_cast<std::int32_t>(p);
  const std::int32_t bits = (raw < kSmallestNormal ? kSmallestNormal : raw) - kHalfRoot;
  const float m = std::bit_cast<float>((bits & 0x7fffff) + kHalfRoot);
  const auto e = static_cast<float>(bits >> 23);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float q = s * s;
  const float series = 2.0f + q * (2.0f / 3.0f + q * (2.0f / 5.0f + q * (2.0f / 7.0f + q * (2.0f / 9.0f))));
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // e * high is exact
  return e * kLn2High + (s * series + e * kLn2Low);
}
MC_HOST_DEVICE inline double log_prob(double p) {
  constexpr double kTiny = std::numeric_limits<double>::min();
  return std::log(p < kTiny ? kTiny : p);
}
// p ln p: 0 at p = 0, NaN for a NaN
template <class T>
MC_HOST_DEVICE inline T p_log_p(T p) {
  return p * log_prob(p);
}

// The sum of scores that divides them; the smallest normal number keeps 0 / 0 out.
template <class T>
MC_HOST_DEVICE inline T at_least_tiny(T sum) {
  constexpr T kTiny = std::numeric_limits<T>::min();
  return sum < kTiny ? kTiny : sum;
}

// dL/dp_te of the balance loss and of the entropy of the batch, the same for every token t, from the share
// f_e and the mean probability of the expert; `balance` is scale a E, `entropy` is scale l_b / (N ln E).
MC_HOST_DEVICE inline double d_prob_of_batch(double balance, double share, double num_tokens, double entropy,
                                             double mean_prob) {
  return balance * share / num_tokens + entropy * log_prob(mean_prob);
}

// 1 / ln E, which scales entropies to [0, 1]; 0 for a single expert, whose entropies are 0.
inline double entropy_scale(std::int64_t num_experts) {
  return num_experts > 1 ? 1.0 / std::log(static_cast<double>(num_experts)) : 0.0;
}

}  // namespace moecollab::numerics
