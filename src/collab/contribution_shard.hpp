// A contribution in memory, read and proved against its own digests.
#pragma once

#include <map>
#include <string>

#include "moecollab/collab/contribution.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::collab {

struct ContributionShard {
  std::string path;
  ContributionMeta meta;
  std::map<std::string, Tensor> weights;  // of the expert, by parameter name
  std::map<std::string, Tensor> rows;     // of the router, by parameter name
};

// Throws ContributionError: not a contribution, damaged, cut short, not finite, or an id that its weights do
// not have.
ContributionShard read_contribution(const std::string& path);

}  // namespace moecollab::collab
