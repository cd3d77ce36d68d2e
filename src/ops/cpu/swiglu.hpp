#pragma once

#include <cstdint>

namespace moecollab::ops::cpu {

template <class A, class Acc>
void swiglu_forward(const A* a, const A* b, std::int64_t n, A* h);
template <class A, class Acc>
void swiglu_backward(const A* dh, const A* a, const A* b, std::int64_t n, A* da, A* db);

}  // namespace moecollab::ops::cpu
