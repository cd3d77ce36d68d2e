// cuDNN's plans for attention, and their execution: bf16, in pieces of the work that bound the scratch
// memory.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/core/cuda_check.cuh"
#include "moecollab/core/stream.hpp"
#include "ops/attention_extents.hpp"
#include "ops/cuda/attention_graph.hpp"

namespace moecollab::ops::cuda {

// Backward takes 2 bytes of scratch memory for each (query head, query, key). What goes over this goes in
// pieces of whole sequences, or of some key/value heads of one. Half a GiB keeps the largest device busy with
// each piece.
inline constexpr std::int64_t kAttentionPieceBytes = std::int64_t{1} << 29;

// Of one stream (Stream::state): a plan is built when its shape is first seen, and kept until there are too
// many.
class AttentionPlans {
 public:
  explicit AttentionPlans(Stream& stream);
  ~AttentionPlans();
  AttentionPlans(const AttentionPlans&) = delete;
  AttentionPlans& operator=(const AttentionPlans&) = delete;

  // False, with nothing done, when cuDNN has no engine for the shape. Rows at or beyond the lengths hold
  // anything afterwards. lse of such rows, as an input, is finite.
  bool forward(Stream& stream, const BFloat16* q, const BFloat16* k, const BFloat16* v,
               const std::int32_t* lengths, const AttentionExtents& extents, BFloat16* out, float* lse);
  bool backward(Stream& stream, const BFloat16* d_out, const BFloat16* q, const BFloat16* k,
                const BFloat16* v, const std::int32_t* lengths, const BFloat16* out, const float* lse,
                const AttentionExtents& extents, BFloat16* dq, BFloat16* dk, BFloat16* dv,
                std::int64_t piece_bytes = kAttentionPieceBytes);

 private:
  const std::optional<Plan>& plan(const GraphShape& shape, bool backward);

  static constexpr std::size_t kMostPlans = 128;
  cudaStream_t stream_;
  cudnnHandle_t handle_ = nullptr;
  std::map<std::pair<GraphShape, bool>, std::optional<Plan>> plans_;
};

}  // namespace moecollab::ops::cuda
