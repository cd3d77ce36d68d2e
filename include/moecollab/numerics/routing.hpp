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
// total order whatever the logits hold.
template <class T>
MC_HOST_DEVICE inline T selection_key(T score) {
  return score == score ? score : -std::numeric_limits<T>::infinity();
}
// True when expert a stands before expert b: the higher key, the lower id at a tie.
template <class T>
MC_HOST_DEVICE inline bool picked_before(T key_a, std::int32_t a, T key_b, std::int32_t b) {
  return key_a > key_b || (key_a == key_b && a < b);
}

// ln x of a positive normal number to 2 ulp, without branches, so that loops over it vectorise. With
// x = 2^e m, m in [sqrt(1/2), sqrt(2)) and s = (m - 1) / (m + 1): ln x = e ln 2 + 2 atanh s, and |s| < 0.172
// makes the series in s^2 converge to f32 after five terms.
MC_HOST_DEVICE inline float log_of_normal(float x) {
  constexpr std::int32_t kHalfRoot = 0x3f3504f3;  // sqrt(1/2)
  const std::int32_t bits = std::bit_cast<std::int32_t>(x) - kHalfRoot;
  const float m = std::bit_cast<float>((bits & 0x7fffff) + kHalfRoot);
  const auto e = static_cast<float>(bits >> 23);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float q = s * s;
  const float series = 2.0f + q * (2.0f / 3.0f + q * (2.0f / 5.0f + q * (2.0f / 7.0f + q * (2.0f / 9.0f))));
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // e * high is exact
  return e * kLn2High + (s * series + e * kLn2Low);
}
MC_HOST_DEVICE inline double log_of_normal(double x) { return std::log(x); }

// ln p of a probability; 0 where p is 0 (or below the normal numbers), for there it only meets a factor p.
template <class T>
MC_HOST_DEVICE inline T log_prob(T p) {
  constexpr T kTiny = std::numeric_limits<T>::min();
  const T value = log_of_normal(p > kTiny ? p : kTiny);
  return p > kTiny ? value : p - p;  // p - p keeps a NaN
}
template <class T>
MC_HOST_DEVICE inline T p_log_p(T p) {
  return p * log_prob(p);
}

// 1 / ln E, which scales entropies to [0, 1]; 0 for a single expert, whose entropies are 0.
inline double entropy_scale(std::int64_t num_experts) {
  return num_experts > 1 ? 1.0 / std::log(static_cast<double>(num_experts)) : 0.0;
}

}  // namespace moecollab::numerics
