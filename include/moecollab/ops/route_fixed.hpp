// Routing that does not ask the gate: every token goes to the experts of its domain.
#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

// table [num_domains * K]: the experts of each domain, -1 fills up. domains [T] i32, -1 (padding) gets no
// expert. The picked experts of a token share the weight 1 equally. picks [T,K] i32, weights [T,K] f32 or
// f64.
void route_fixed(Stream& stream, ConstTensorView domains, std::span<const std::int32_t> table,
                 TensorView picks, TensorView weights);

}  // namespace moecollab::ops
