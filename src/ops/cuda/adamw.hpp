#pragma once

#include <span>

#include "moecollab/core/stream.hpp"
#include "moecollab/ops/adamw.hpp"

namespace moecollab::ops::cuda {

// Ranges of f32 with values of f32, bf16 or none.
void adamw_update(Stream& stream, std::span<const AdamWRange> ranges, const AdamWOptions& options);

}  // namespace moecollab::ops::cuda
