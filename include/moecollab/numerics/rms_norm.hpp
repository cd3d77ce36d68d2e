// RMSNorm (Zhang & Sennrich, 2019), per row of n elements.
#pragma once

#include <cmath>

#include "moecollab/numerics/macros.hpp"

namespace moecollab::numerics {

// rstd = 1 / sqrt(mean(x^2) + eps)
template <class R>
MC_HOST_DEVICE inline R rms_rstd(R sum_of_squares, R n, R eps) {
  return R(1) / std::sqrt(sum_of_squares / n + eps);
}

// With g = dy * w and xhat = x * rstd: dx = rstd * (g - xhat * mean(g * xhat))
template <class R>
MC_HOST_DEVICE inline R rms_norm_dx(R g, R xhat, R mean_g_xhat, R rstd) {
  return rstd * (g - xhat * mean_g_xhat);
}

}  // namespace moecollab::numerics
