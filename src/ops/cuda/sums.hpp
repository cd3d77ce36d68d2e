#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

template <class A>
struct SumPart {
  const A* x = nullptr;
  std::int64_t n = 0;
};
// sums[i] = sum of parts[i], or of its squares, for float, BFloat16 and double.
template <class A>
void sum(Stream& stream, std::span<const SumPart<A>> parts, double* sums);
template <class A>
void sum_of_squares(Stream& stream, std::span<const SumPart<A>> parts, double* sums);

}  // namespace moecollab::ops::cuda
