#pragma once

#include <cstdint>

namespace moecollab::ops::cpu {

// direction +1 forward, -1 backward.
template <class A, class Acc>
void rope(const std::int32_t* positions, std::int64_t T, std::int64_t H, std::int64_t Dh, double theta,
          int direction, A* x);

}  // namespace moecollab::ops::cpu
