// Rotary position embedding (Su et al., 2021), half-split layout.
#pragma once

#include <cmath>
#include <cstdint>

#include "moecollab/numerics/macros.hpp"

namespace moecollab::numerics {

// The angle of pair i < Dh/2 at a position: position * theta^(-2i/Dh). In double whatever the element type:
// at position 10^5 a float angle is off by 0.004.
MC_HOST_DEVICE inline double rope_angle(std::int32_t position, double theta, std::int64_t i,
                                        std::int64_t head_size) {
  return position * std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_size));
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
