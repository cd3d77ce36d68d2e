// How the ranks of a job are used: world = expert-parallel groups x replicas.
#pragma once

#include <cstdint>

#include "moecollab/comm/communicator.hpp"

namespace moecollab::nn {

// World rank w is rank w % ep of replica w / ep. Replicas hold the same experts; the ranks of a replica hold
// all of them once.
class Parallel {
 public:
  static Parallel single();  // one rank, no MPI
  Parallel(Communicator world,
           std::int64_t expert_parallel_size);  // collective; throws UsageError unless ep divides size

  const Communicator& world() const { return world_; }
  const Communicator& experts() const { return experts_; }    // ranks of this replica, by expert rank
  const Communicator& replicas() const { return replicas_; }  // ranks that hold the same experts
  std::int32_t expert_parallel_size() const { return experts_.size(); }
  std::int32_t expert_rank() const { return experts_.rank(); }
  std::int32_t replica() const { return replicas_.rank(); }
  std::int32_t num_replicas() const { return replicas_.size(); }

 private:
  Communicator world_, experts_, replicas_;
};

// The part [begin, end) of n sequences that rank r of size ranks works on.
struct Share {
  std::int64_t begin = 0, end = 0;
};
inline Share share_of(std::int64_t n, std::int64_t rank, std::int64_t size) {
  return {n * rank / size, n * (rank + 1) / size};
}

}  // namespace moecollab::nn
