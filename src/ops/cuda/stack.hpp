#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

// n: elements of a row. For float, BFloat16 and double.
template <class A>
void stack_rows(Stream& stream, std::span<const A* const> rows, std::int64_t n, A* out);
// Rows that are null are left out.
template <class A>
void add_to_rows(Stream& stream, const A* in, std::int64_t n, std::span<A* const> rows);

}  // namespace moecollab::ops::cuda
