#include "moecollab/train/batches.hpp"

namespace moecollab::train {

nn::Batch view(const data::Batch& batch) {
  nn::Batch out;
  out.tokens = batch.tokens.view();
  out.targets = batch.targets.view();
  out.lengths = batch.lengths.view();
  out.segments = batch.segments.view();
  out.domains = batch.domains.view();
  return out;
}

std::vector<data::Batch> rows_of_step(const data::Sampler& sampler, std::int64_t position,
                                      const TrainConfig& config, const Communicator& world) {
  const std::int64_t size = config.batch_size / config.micro_batches;
  const nn::Share share = nn::share_of(size, world.rank(), world.size());
  std::vector<data::Batch> batches;
  for (std::int64_t m = 0; m < config.micro_batches; ++m)
    batches.push_back(sampler.batch(position + m * size, share.begin, share.end));
  return batches;
}

}  // namespace moecollab::train
