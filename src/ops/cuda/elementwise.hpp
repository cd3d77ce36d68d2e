#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

// All for float, BFloat16 and double (statistics).
template <class From, class To>
void cast(Stream& stream, const From* x, std::int64_t n, To* y);
template <class A>
void add(Stream& stream, const A* x, std::int64_t n, A* y);
template <class A>
void scale(Stream& stream, double factor, std::int64_t n, A* y);
template <class A>
void add_scalars(Stream& stream, std::span<const std::int64_t> offsets, std::span<const double> values, A* y);

}  // namespace moecollab::ops::cuda
