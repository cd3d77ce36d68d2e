// Between the element type in memory and the type sums run in, in the form loops vectorise: copying a
// BFloat16 as a struct keeps the compiler from vectorising, its bits do not.
#pragma once

#include <bit>
#include <cstdint>

#include "moecollab/core/bfloat16.hpp"

namespace moecollab::ops::cpu {

inline float load(const float& x) { return x; }
inline double load(const double& x) { return x; }
inline float load(const BFloat16& x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

inline void store(float& to, float value) { to = value; }
inline void store(double& to, double value) { to = value; }
inline void store(BFloat16& to, float value) {  // to nearest even, as BFloat16(value), without its branch
  const auto u = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (u >> 16) | 0x40u;
  to.bits = static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

}  // namespace moecollab::ops::cpu
