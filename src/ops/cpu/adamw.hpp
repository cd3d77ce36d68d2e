#pragma once

#include "moecollab/ops/adamw.hpp"

namespace moecollab::ops::cpu {

// A: the type of value, Acc: of the rest.
template <class A, class Acc>
void adamw_update(const AdamWRange& range, const AdamWOptions& options);

}  // namespace moecollab::ops::cpu
