// The same step on one rank, computed on every rank beside the parallel one, and how near the two must be.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moecollab/nn/parallel.hpp"
#include "support/compare_models.hpp"
#include "support/tiny_model.hpp"

namespace moecollab::test {

// The expert-parallel sizes of a job: all ranks one group, and two replicas where the ranks allow it.
inline std::vector<std::int64_t> layouts(std::int64_t ranks) {
  if (ranks % 2 == 0) return {ranks, ranks / 2};
  return {ranks};
}

inline std::string layout_name(const nn::Parallel& parallel, const TinySpec& spec) {
  return spec.name + ", " + to_string(spec.config.dtype) + ", expert_parallel " +
         std::to_string(parallel.expert_parallel_size()) + " x " + std::to_string(parallel.num_replicas());
}

}  // namespace moecollab::test
