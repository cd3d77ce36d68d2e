#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

template <class A>
void swiglu_forward(Stream& stream, const A* a, const A* b, std::int64_t n, A* h);
template <class A>
void swiglu_backward(Stream& stream, const A* dh, const A* a, const A* b, std::int64_t n, A* da, A* db);

}  // namespace moecollab::ops::cuda
