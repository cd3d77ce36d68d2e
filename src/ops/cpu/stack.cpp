#include "ops/cpu/stack.hpp"

#include "moecollab/core/bfloat16.hpp"
#include "ops/cpu/blocks.hpp"
#include "ops/cpu/convert.hpp"

namespace moecollab::ops::cpu {

template <class A>
void stack_rows(std::span<const A* const> rows, std::int64_t n, A* out) {
  for_rows(static_cast<std::int64_t>(rows.size()), n,
           [=](std::int64_t i) { std::copy_n(rows[static_cast<std::size_t>(i)], n, out + i * n); });
}

template <class A>
void add_to_rows(const A* in, std::int64_t n, std::span<A* const> rows) {
  for_rows(static_cast<std::int64_t>(rows.size()), n, [=](std::int64_t i) {
    A* const to = rows[static_cast<std::size_t>(i)];
    if (to == nullptr) return;
    const A* const from = in + i * n;
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) store(to[j], load(to[j]) + load(from[j]));
  });
}

#define MC_INSTANTIATE(A)                                                   \
  template void stack_rows<A>(std::span<const A* const>, std::int64_t, A*); \
  template void add_to_rows<A>(const A*, std::int64_t, std::span<A* const>);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
MC_INSTANTIATE(double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cpu
