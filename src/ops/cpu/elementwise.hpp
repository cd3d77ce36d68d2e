#pragma once

#include <cstdint>

namespace moecollab::ops::cpu {

template <class From, class To>
void cast(const From* x, std::int64_t n, To* y);
template <class A, class Acc>
void add(const A* x, std::int64_t n, A* y);
template <class A, class Acc>
void scale(double factor, std::int64_t n, A* y);
void fill_zero(void* y, std::int64_t bytes);
template <class A>
double sum_of_squares(const A* x, std::int64_t n);
template <class A>
bool all_finite(const A* x, std::int64_t n);

}  // namespace moecollab::ops::cpu
