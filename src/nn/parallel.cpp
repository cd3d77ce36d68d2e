#include "moecollab/nn/parallel.hpp"

#include <string>
#include <utility>

#include "moecollab/core/error.hpp"

namespace moecollab::nn {

namespace {
int checked_group_size(const Communicator& world, std::int64_t expert_parallel_size) {
  if (expert_parallel_size < 1 || world.size() % expert_parallel_size != 0)
    throw UsageError(
        "the number of ranks must be expert_parallel x replicas: " + std::to_string(world.size()) +
        " ranks cannot be cut into groups of " + std::to_string(expert_parallel_size));
  return static_cast<int>(expert_parallel_size);
}
}  // namespace

Parallel Parallel::single() { return Parallel(Communicator::self(), 1); }

Parallel::Parallel(Communicator world, std::int64_t expert_parallel_size)
    : world_(std::move(world)),
      experts_(world_.split(world_.rank() / checked_group_size(world_, expert_parallel_size), world_.rank())),
      replicas_(world_.split(world_.rank() % static_cast<int>(expert_parallel_size), world_.rank())) {}

}  // namespace moecollab::nn
