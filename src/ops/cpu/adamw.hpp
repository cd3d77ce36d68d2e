#pragma once

#include <cstdint>

#include "moecollab/ops/adamw.hpp"

namespace moecollab::ops::cpu {

// value may be null.
template <class A, class Acc>
void adamw_update(const Acc* grad, const AdamWOptions& options, std::int64_t n, Acc* master, Acc* exp_avg,
                  Acc* exp_avg_sq, A* value);

}  // namespace moecollab::ops::cpu
