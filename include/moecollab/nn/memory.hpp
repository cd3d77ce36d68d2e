// How much a rank needs at most, known before anything is allocated.
#pragma once

#include <cstdint>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/tensor.hpp"
#include "moecollab/nn/model_config.hpp"

namespace moecollab::nn {

struct WorkPerRank {
  std::int64_t max_sequences = 0;  // most sequences of a micro-batch on one rank
  std::int64_t seq_len = 0;        // S
  std::int64_t expert_parallel_size = 1;
  std::int64_t expert_rank = 0;
  Device device = Device::cpu;
  std::int64_t global_tokens = 0;  // of a micro-batch over all ranks; read with a capacity on a CUDA device
};

// Upper bound in bytes of what the arena of a rank holds at once in forward_backward: activations kept for
// backward plus the largest scratch of one layer. Dropless worst case: every token of every rank of the group
// picks as many experts of this rank as it can, so a layer receives up to ep * T * min(K, experts of the
// rank) rows, of which max_rows are held at once when it is set. With a capacity on a CUDA device every
// expert has as many rows as it can take, and those are held.
std::int64_t activation_bytes_bound(const ModelConfig& config, const ExpertSlots& slots,
                                    const WorkPerRank& work);

// About how much the streams of a CUDA device hold beside that: staging memory, the sums over ranks in
// flight, and the scratch of the largest operation (attention backward in bf16 keeps scores, in pieces of 512
// MiB or one key/value head). Libraries' own memory comes on top.
std::int64_t device_scratch_bytes(const ModelConfig& config, const WorkPerRank& work);

}  // namespace moecollab::nn
