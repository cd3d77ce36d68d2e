// What a model reads: views of this rank's part of a micro-batch, and how large the whole micro-batch is.
#pragma once

#include <cstdint>

#include "moecollab/core/tensor.hpp"

namespace moecollab::nn {

struct Batch {
  ConstTensorView tokens;    // [B,S] i32 in [0, V)
  ConstTensorView targets;   // lm: [B,S] i32, -1 = no target; classifier: [B] i32 labels
  ConstTensorView lengths;   // [B] i32 valid tokens of each sequence (right padding)
  ConstTensorView segments;  // [B,S] i32 document of each token, unique in the rank's batch, -1 = padding
  ConstTensorView domains;   // [B,S] i32 domain of each token, -1 = padding
  // Over all ranks, of this micro-batch:
  std::int64_t global_targets = 0;   // targets that are not -1
  std::int64_t global_tokens = 0;    // valid tokens; 0 in generation, where capacity drops no pick
  std::int64_t max_rank_tokens = 0;  // the most tokens that a rank has, padding included
  std::int64_t global_targets_of_step =
      0;  // summed over the micro-batches of the step: what the loss is divided by
  std::int64_t micro_batches = 1;

  std::int64_t batch_size() const { return tokens.dim(0); }
  std::int64_t seq_len() const { return tokens.dim(1); }
};

}  // namespace moecollab::nn
