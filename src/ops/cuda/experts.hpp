// Grouped experts on the device. Raw device pointers; src/ops/experts.cpp has checked the segments.
#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/arena.hpp"
#include "moecollab/core/stream.hpp"
#include "ops/cpu/moe_kernels.hpp"
#include "ops/cuda/grouped_gemm.hpp"

namespace moecollab::ops::cuda {

// T: float or BFloat16. Every segment of `work` has rows.
template <class T>
void experts_forward(Stream& stream, Arena& arena, const T* x, std::int64_t dim,
                     std::span<const cpu::ExpertWork<T>> work, T* y, GemmTile tile = GemmTile::by_shape);
template <class T>
void experts_backward(Stream& stream, Arena& arena, const T* dy, const T* x, std::int64_t dim,
                      std::span<const cpu::ExpertWork<T>> work, T* dx, GemmTile tile = GemmTile::by_shape);

}  // namespace moecollab::ops::cuda
