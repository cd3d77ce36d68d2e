// 128-bit identity of an expert. Derived from (seed, slot) or from content, never drawn at random.
#pragma once

#include <compare>
#include <cstdint>
#include <string>

namespace moecollab {

struct Uuid {
  std::uint64_t high = 0;
  std::uint64_t low = 0;

  bool nil() const { return high == 0 && low == 0; }
  auto operator<=>(const Uuid&) const = default;

  static Uuid from_seed(std::uint64_t seed, std::uint64_t slot);  // an expert born with its model
  static Uuid from_bits(std::uint64_t high, std::uint64_t low);   // from a digest of content
  static Uuid parse(const std::string& text);  // throws DataError; canonical 8-4-4-4-12 form
};
std::string to_string(const Uuid& uuid);

}  // namespace moecollab
