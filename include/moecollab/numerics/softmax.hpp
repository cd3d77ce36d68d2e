// Steps of a softmax over a row that is read once, tile by tile (Milakov & Gimelshein, 2018).
#pragma once

#include "moecollab/numerics/exp.hpp"

namespace moecollab::numerics {

// What a sum of exp(x - old_max) is multiplied with when the maximum rises: exp(old_max - new_max), and 0 for
// the first tile, whose old maximum is minus infinity.
template <class R>
MC_HOST_DEVICE inline R softmax_rescale(R old_max, R new_max) {
  return old_max == -R(HUGE_VAL) ? R(0) : exp_fast(old_max - new_max);
}

// log of the denominator, from the maximum and the sum of exp(x - max)
template <class R>
MC_HOST_DEVICE inline R log_sum_exp(R max, R sum) {
  return max + std::log(sum);
}

}  // namespace moecollab::numerics
