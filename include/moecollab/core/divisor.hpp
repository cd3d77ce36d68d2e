// The way out that an error message offers when one count must divide another.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace moecollab {

// The divisor of `number` (>= 1) closest to `wanted`; the smaller one at a tie.
constexpr std::int64_t nearest_divisor(std::int64_t number, std::int64_t wanted) {
  const auto distance = [wanted](std::int64_t d) { return d > wanted ? d - wanted : wanted - d; };
  std::int64_t best = 1;
  for (std::int64_t d = 1; d <= number / d; ++d) {
    if (number % d != 0) continue;
    for (const std::int64_t candidate : {d, number / d}) {
      const bool closer = distance(candidate) < distance(best);
      if (closer || (distance(candidate) == distance(best) && candidate < best)) best = candidate;
    }
  }
  return best;
}

}  // namespace moecollab
