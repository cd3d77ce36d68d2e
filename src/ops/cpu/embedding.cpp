#include "ops/cpu/embedding.hpp"

#include <cstring>

#include "moecollab/core/bfloat16.hpp"
#include "ops/cpu/blocks.hpp"
#include "ops/cpu/convert.hpp"

namespace moecollab::ops::cpu {

template <class A>
void embedding_forward(const std::int32_t* tokens, const A* table, std::int64_t T, std::int64_t D, A* y) {
  for_rows(T, D, [=](std::int64_t t) {
    std::memcpy(y + t * D, table + tokens[t] * D, static_cast<std::size_t>(D) * sizeof(A));
  });
}

// Each unit of work owns the table rows of one residue and walks over all tokens: no row has two writers, and
// each row sees its tokens in order. Reading the tokens once per unit is nothing beside the rows.
template <class A, class Acc>
void embedding_backward(const std::int32_t* tokens, const A* dy, std::int64_t T, std::int64_t D,
                        Acc* d_table) {
  constexpr std::int32_t kUnits = 64;
#pragma omp parallel for schedule(dynamic) if (T * D >= kParallelFrom)
  for (std::int32_t unit = 0; unit < kUnits; ++unit)
    for (std::int64_t t = 0; t < T; ++t) {
      if (tokens[t] % kUnits != unit) continue;
      const A* from = dy + t * D;
      Acc* to = d_table + tokens[t] * D;
#pragma omp simd
      for (std::int64_t d = 0; d < D; ++d) to[d] += load(from[d]);
    }
}

#define MC_INSTANTIATE(A, Acc)                                                                       \
  template void embedding_forward<A>(const std::int32_t*, const A*, std::int64_t, std::int64_t, A*); \
  template void embedding_backward<A, Acc>(const std::int32_t*, const A*, std::int64_t, std::int64_t, Acc*);
MC_INSTANTIATE(float, float)
MC_INSTANTIATE(BFloat16, float)
MC_INSTANTIATE(double, double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cpu
