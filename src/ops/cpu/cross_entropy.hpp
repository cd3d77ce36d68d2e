#pragma once

#include <cstdint>

namespace moecollab::ops::cpu {

// d_logits may be null: the losses alone.
template <class A, class Acc>
void cross_entropy(const A* logits, const std::int32_t* targets, std::int64_t T, std::int64_t V, double scale,
                   Acc* loss, A* d_logits);

}  // namespace moecollab::ops::cpu
