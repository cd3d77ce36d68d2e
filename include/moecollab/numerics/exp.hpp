// The exponential function in the form loops can vectorise.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "moecollab/numerics/macros.hpp"

namespace moecollab::numerics {

// exp(x) within 1.5 units in the last place; 0 below -86.6 (no subnormal results), infinity above 88.72; a
// NaN stays a NaN. x = n ln2 + r with |r| <= ln2 / 2; exp(r) by a polynomial of degree 6 (minimax of the
// relative error, 5e-9); no branch and no table, so that a loop over it vectorises.
MC_HOST_DEVICE inline float exp_fast(float x) {
  constexpr float kLog2e = 1.4426950216293335f;
  constexpr float kLn2High = 0.693359375f;                // ten bits: n * kLn2High is exact
  constexpr float kLn2Low = -0.00021219444170128554f;     // ln2 - kLn2High
  constexpr float kRoundToInteger = 12582912.0f;          // 1.5 * 2^23: adding it leaves n in the low bits
  constexpr float kSmallest = -86.6f, kLargest = 88.72f;  // n stays in [-125, 128]
  float clamped = x < kSmallest ? kSmallest : x;
  clamped = clamped > kLargest ? kLargest : clamped;
  const float shifted = clamped * kLog2e + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 0.00138391915243119f;
  p = p * r + 0.008368734270334244f;
  p = p * r + 0.04166797921061516f;
  p = p * r + 0.1666652113199234f;
  p = p * r + 0.4999999403953552f;
  p = p * (r * r) + r + 1.0f;
  // 2^(n-1), built in the exponent field; the factor 2 comes last, because 2^128 is no float.
  const auto exponent = (std::bit_cast<std::uint32_t>(shifted) << 23) + (std::uint32_t{126} << 23);
  float result = p * std::bit_cast<float>(exponent) * 2.0f;
  result = x < kSmallest ? 0.0f : result;
  return x > kLargest ? HUGE_VALF : result;
}
// The reference of gradient checks.
MC_HOST_DEVICE inline double exp_fast(double x) { return std::exp(x); }

}  // namespace moecollab::numerics
