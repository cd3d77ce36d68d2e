#pragma once

#include <cstdint>
#include <span>

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
double sum(const A* x, std::int64_t n);
template <class A>
void add_scalars(std::span<const std::int64_t> offsets, std::span<const double> values, A* y);

}  // namespace moecollab::ops::cpu
