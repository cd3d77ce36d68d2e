// Attention as the graphs of operations that cuDNN's fused engines recognise. Tensors lie in memory as
// [B,S,H,Dh], lengths as [B] i32 on the device.
#pragma once

#include <compare>
#include <cstdint>

#include "ops/cuda/cudnn_graph.hpp"

namespace moecollab::ops::cuda {

// Heads and key/value heads of one call, and how many there are in a row of memory: more only for one
// sequence at a time, because lse is packed.
struct GraphShape {
  std::int64_t batch, heads, kv_heads, sequence, width;
  std::int64_t row_heads, row_kv_heads;
  bool causal;
  auto operator<=>(const GraphShape&) const = default;
};

enum AttentionUid : std::int64_t {
  kQ = 1,
  kK,
  kV,
  kOut,
  kLse,
  kLengths,
  kScale,
  kHidden,
  kOne,
  kDOut,
  kDots,
  kDQ,
  kDK,
  kDV
};

// kHidden is the score of what is masked, minus infinity; kOne is 1.
Graph forward_graph(const GraphShape& shape);
// kDots [B,H,S] f32 is scratch memory. dQ is a product of its own, over dS in the plan's workspace: 2 bytes
// for each (query head, query, key). The form that adds up dQ in memory while it goes over the keys needs no
// such workspace, but adds in the order in which blocks arrive, and no note of the engine says so.
Graph backward_graph(const GraphShape& shape);

}  // namespace moecollab::ops::cuda
