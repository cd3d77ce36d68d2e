#include "ops/cpu/cross_entropy.hpp"

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/numerics/softmax.hpp"
#include "ops/cpu/blocks.hpp"
#include "ops/cpu/convert.hpp"

namespace moecollab::ops::cpu {

// Three reads of a row that fits the cache: the maximum, the sum of exponentials, the gradient. Storing the
// exponentials instead of computing them twice costs the same and needs memory.
template <class A, class Acc>
void cross_entropy(const A* logits, const std::int32_t* targets, std::int64_t T, std::int64_t V, double scale,
                   Acc* loss, A* d_logits) {
  for_rows(T, V, [=](std::int64_t t) {
    const A* const row = logits + t * V;
    A* const d_row = d_logits == nullptr ? nullptr : d_logits + t * V;
    const std::int32_t target = targets[t];
    if (target < 0) {
      loss[t] = 0;
      if (d_row != nullptr) std::fill_n(d_row, V, A(Acc(0)));
      return;
    }
    Acc max = -Acc(HUGE_VAL);
#pragma omp simd reduction(max : max)
    for (std::int64_t v = 0; v < V; ++v) max = std::max(max, load(row[v]));
    Acc sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t v = 0; v < V; ++v) sum += numerics::exp_fast(load(row[v]) - max);
    loss[t] = numerics::log_sum_exp(max, sum) - load(row[target]);
    if (d_row == nullptr) return;
    const Acc factor = static_cast<Acc>(scale) / sum;
    const Acc at_target = factor * numerics::exp_fast(load(row[target]) - max) - static_cast<Acc>(scale);
#pragma omp simd
    for (std::int64_t v = 0; v < V; ++v) store(d_row[v], factor * numerics::exp_fast(load(row[v]) - max));
    store(d_row[target], at_target);
  });
}

template void cross_entropy<float, float>(const float*, const std::int32_t*, std::int64_t, std::int64_t,
                                          double, float*, float*);
template void cross_entropy<BFloat16, float>(const BFloat16*, const std::int32_t*, std::int64_t, std::int64_t,
                                             double, float*, BFloat16*);
template void cross_entropy<double, double>(const double*, const std::int32_t*, std::int64_t, std::int64_t,
                                            double, double*, double*);

}  // namespace moecollab::ops::cpu
