#include "ops/cpu/adamw.hpp"

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/numerics/adamw.hpp"
#include "ops/cpu/blocks.hpp"
#include "ops/cpu/convert.hpp"

namespace moecollab::ops::cpu {

template <class A, class Acc>
void adamw_update(const AdamWRange& range, const AdamWOptions& options) {
  const numerics::AdamWFactors<Acc> factors(options.learning_rate, options.beta1, options.beta2, options.eps,
                                            range.weight_decay, options.grad_scale, range.step);
  const Acc* const grad = range.grad.as<Acc>();
  Acc *const master = range.master.as<Acc>(), *const exp_avg = range.exp_avg.as<Acc>();
  Acc* const exp_avg_sq = range.exp_avg_sq.as<Acc>();
  A* const value = range.value.empty() ? nullptr : range.value.as<A>();
  for_blocks(range.grad.numel(), [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i)
      master[i] = numerics::adamw_step(factors, grad[i], master[i], exp_avg[i], exp_avg_sq[i]);
    if (value == nullptr) return;
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) store(value[i], master[i]);
  });
}

template void adamw_update<float, float>(const AdamWRange&, const AdamWOptions&);
template void adamw_update<BFloat16, float>(const AdamWRange&, const AdamWOptions&);
template void adamw_update<double, double>(const AdamWRange&, const AdamWOptions&);

}  // namespace moecollab::ops::cpu
