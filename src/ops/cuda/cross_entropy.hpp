#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

// d_logits may be null: the losses alone.
template <class A>
void cross_entropy(Stream& stream, const A* logits, const std::int32_t* targets, std::int64_t T,
                   std::int64_t V, double scale, float* loss, A* d_logits);

}  // namespace moecollab::ops::cuda
