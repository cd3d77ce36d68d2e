// Twin of the loop in ops/route_fixed.cpp.
#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

void route_fixed(Stream& stream, const std::int32_t* domains, std::span<const std::int32_t> table,
                 std::int64_t tokens, std::int64_t top_k, std::int32_t* picks, float* weights);

}  // namespace moecollab::ops::cuda
