#pragma once

#include <cstdint>
#include <span>

namespace moecollab::ops::cpu {

// n: elements of a row.
template <class A>
void stack_rows(std::span<const A* const> rows, std::int64_t n, A* out);
// Rows that are null are left out.
template <class A>
void add_to_rows(const A* in, std::int64_t n, std::span<A* const> rows);

}  // namespace moecollab::ops::cpu
