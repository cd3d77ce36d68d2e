#include "ops/cpu/elementwise.hpp"

#include <cstring>
#include <type_traits>
#include <vector>

#include "moecollab/core/bfloat16.hpp"
#include "ops/cpu/blocks.hpp"
#include "ops/cpu/convert.hpp"

namespace moecollab::ops::cpu {
namespace {

// bf16 is read and written through float.
template <class A>
using Real = std::conditional_t<std::is_same_v<A, BFloat16>, float, A>;

// Sum of term(x[i]) in double: within blocks, then over them in order.
template <class A, class Term>
double sum_in_blocks(const A* x, std::int64_t n, const Term& term) {
  std::vector<double> of_block(static_cast<std::size_t>((n + kBlock - 1) / kBlock));
  for_blocks(n, [&](std::int64_t begin, std::int64_t end) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = begin; i < end; ++i) sum += term(static_cast<double>(load(x[i])));
    of_block[static_cast<std::size_t>(begin / kBlock)] = sum;
  });
  double total = 0.0;
  for (const double sum : of_block) total += sum;
  return total;
}

}  // namespace

template <class From, class To>
void cast(const From* x, std::int64_t n, To* y) {
  for_blocks(n, [=](std::int64_t begin, std::int64_t end) {
    if constexpr (std::is_same_v<From, To>) {
      std::memmove(y + begin, x + begin, static_cast<std::size_t>(end - begin) * sizeof(To));
    } else {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) store(y[i], static_cast<Real<To>>(load(x[i])));
    }
  });
}

template <class A, class Acc>
void add(const A* x, std::int64_t n, A* y) {
  for_blocks(n, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) store(y[i], load(y[i]) + load(x[i]));
  });
}

template <class A, class Acc>
void scale(double factor, std::int64_t n, A* y) {
  const Acc f = static_cast<Acc>(factor);
  for_blocks(n, [=](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) store(y[i], f * load(y[i]));
  });
}

void fill_zero(void* y, std::int64_t bytes) {
  auto* to = static_cast<unsigned char*>(y);
  for_blocks(bytes, [=](std::int64_t begin, std::int64_t end) {
    std::memset(to + begin, 0, static_cast<std::size_t>(end - begin));
  });
}

template <class A>
double sum_of_squares(const A* x, std::int64_t n) {
  return sum_in_blocks(x, n, [](double v) { return v * v; });
}

template <class A>
double sum(const A* x, std::int64_t n) {
  return sum_in_blocks(x, n, [](double v) { return v; });
}

template <class A>
void add_scalars(std::span<const std::int64_t> offsets, std::span<const double> values, A* y) {
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    A& to = y[offsets[i]];
    store(to, load(to) + static_cast<Real<A>>(values[i]));
  }
}

#define MC_CAST(From)                                                       \
  template void cast<From, float>(const From*, std::int64_t, float*);       \
  template void cast<From, BFloat16>(const From*, std::int64_t, BFloat16*); \
  template void cast<From, double>(const From*, std::int64_t, double*);
MC_CAST(float)
MC_CAST(BFloat16)
MC_CAST(double)
#undef MC_CAST

#define MC_INSTANTIATE(A, Acc)                               \
  template void add<A, Acc>(const A*, std::int64_t, A*);     \
  template void scale<A, Acc>(double, std::int64_t, A*);     \
  template double sum_of_squares<A>(const A*, std::int64_t); \
  template double sum<A>(const A*, std::int64_t);            \
  template void add_scalars<A>(std::span<const std::int64_t>, std::span<const double>, A*);
MC_INSTANTIATE(float, float)
MC_INSTANTIATE(BFloat16, float)
MC_INSTANTIATE(double, double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cpu
