#pragma once

#include <cstdint>

namespace moecollab::ops::cpu {

template <class A>
void embedding_forward(const std::int32_t* tokens, const A* table, std::int64_t T, std::int64_t D, A* y);
template <class A, class Acc>
void embedding_backward(const std::int32_t* tokens, const A* dy, std::int64_t T, std::int64_t D,
                        Acc* d_table);

}  // namespace moecollab::ops::cpu
