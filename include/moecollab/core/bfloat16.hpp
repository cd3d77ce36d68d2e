// bfloat16 storage type: the upper half of an IEEE f32, rounded to nearest even. Arithmetic happens in float.
#pragma once

#include <bit>
#include <cstdint>

namespace moecollab {

struct BFloat16 {
  std::uint16_t bits = 0;

  BFloat16() = default;
  explicit BFloat16(float value) : bits(round(value)) {}
  explicit operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

  // Round to nearest even; a NaN stays a (quiet) NaN.
  static std::uint16_t round(float value) {
    const auto u = std::bit_cast<std::uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x40u);
    return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
};

static_assert(sizeof(BFloat16) == 2);

}  // namespace moecollab
