// AdamW (Loshchilov & Hutter, 2019), one element.
#pragma once

#include <cmath>
#include <cstdint>

#include "moecollab/numerics/macros.hpp"

namespace moecollab::numerics {

// What all elements of an update share, computed in double and rounded once.
template <class R>
struct AdamWFactors {
  R grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  R step_size;       // lr / (1 - beta1^step)
  R rsqrt_correct2;  // 1 / sqrt(1 - beta2^step)
  R eps, decay;      // decay = lr * weight_decay

  AdamWFactors(double learning_rate, double beta1_in, double beta2_in, double eps_in, double weight_decay,
               double grad_scale_in, std::int64_t step)
      : grad_scale(static_cast<R>(grad_scale_in)),
        beta1(static_cast<R>(beta1_in)),
        one_minus_beta1(static_cast<R>(1.0 - beta1_in)),
        beta2(static_cast<R>(beta2_in)),
        one_minus_beta2(static_cast<R>(1.0 - beta2_in)),
        step_size(static_cast<R>(learning_rate / (1.0 - std::pow(beta1_in, static_cast<double>(step))))),
        rsqrt_correct2(static_cast<R>(1.0 / std::sqrt(1.0 - std::pow(beta2_in, static_cast<double>(step))))),
        eps(static_cast<R>(eps_in)),
        decay(static_cast<R>(learning_rate * weight_decay)) {}
};

// m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; master -= lr * (mhat / (sqrt(vhat) + eps) + decay * master).
// Returns the new master.
template <class R>
MC_HOST_DEVICE inline R adamw_step(const AdamWFactors<R>& f, R grad, R master, R& exp_avg, R& exp_avg_sq) {
  const R g = f.grad_scale * grad;
  exp_avg = f.beta1 * exp_avg + f.one_minus_beta1 * g;
  exp_avg_sq = f.beta2 * exp_avg_sq + f.one_minus_beta2 * g * g;
  return master - f.step_size * exp_avg / (std::sqrt(exp_avg_sq) * f.rsqrt_correct2 + f.eps) -
         f.decay * master;
}

}  // namespace moecollab::numerics
