#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

// direction +1 forward, -1 backward.
template <class A>
void rope(Stream& stream, const std::int32_t* positions, std::int64_t T, std::int64_t H, std::int64_t Dh,
          double theta, int direction, A* x);

}  // namespace moecollab::ops::cuda
