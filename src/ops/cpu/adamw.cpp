#include "ops/cpu/adamw.hpp"

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/numerics/adamw.hpp"
#include "ops/cpu/blocks.hpp"
#include "ops/cpu/convert.hpp"

namespace moecollab::ops::cpu {

template <class A, class Acc>
void adamw_update(const Acc* grad, const AdamWOptions& options, std::int64_t n, Acc* master, Acc* exp_avg,
                  Acc* exp_avg_sq, A* value) {
  const numerics::AdamWFactors<Acc> factors(options.learning_rate, options.beta1, options.beta2, options.eps,
                                            options.weight_decay, options.grad_scale, options.step);
  for_blocks(n, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i)
      master[i] = numerics::adamw_step(factors, grad[i], master[i], exp_avg[i], exp_avg_sq[i]);
    if (value == nullptr) return;
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) store(value[i], master[i]);
  });
}

template void adamw_update<float, float>(const float*, const AdamWOptions&, std::int64_t, float*, float*,
                                         float*, float*);
template void adamw_update<BFloat16, float>(const float*, const AdamWOptions&, std::int64_t, float*, float*,
                                            float*, BFloat16*);
template void adamw_update<double, double>(const double*, const AdamWOptions&, std::int64_t, double*, double*,
                                           double*, double*);

}  // namespace moecollab::ops::cpu
