// Rotary position embedding (Su et al., 2021), half-split layout.
#pragma once

#include <cmath>
#include <cstdint>

#include "moecollab/numerics/macros.hpp"

namespace moecollab::numerics {

// What a step of one position turns pair i < Dh/2 by. The angle at a position is position * rope_frequency,
// in double whatever the element type: at position 10^5 a float angle is off by 0.004.
MC_HOST_DEVICE inline double rope_frequency(double theta, std::int64_t i, std::int64_t head_size) {
  return std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_size));
}
MC_HOST_DEVICE inline double rope_angle(std::int32_t position, double theta, std::int64_t i,
                                        std::int64_t head_size) {
  return position * rope_frequency(theta, i, head_size);
}

template <class R>
struct Pair {
  R first, second;
};
template <class R>
MC_HOST_DEVICE inline Pair<R> rotate(R first, R second, R cosine, R sine) {
  return {first * cosine - second * sine, second * cosine + first * sine};
}

}  // namespace moecollab::numerics
