// From the sampler's rows to what the model reads.
#pragma once

#include <cstdint>
#include <vector>

#include "moecollab/data/sampler.hpp"
#include "moecollab/nn/batch.hpp"
#include "moecollab/nn/parallel.hpp"
#include "moecollab/train/train_config.hpp"

namespace moecollab::train {

nn::Batch view(const data::Batch& batch);  // global counts are left open

// This rank's rows of every micro-batch of one optimizer step. Sample `position` is the first of the step;
// micro-batch m of M takes the next batch_size / M samples, cut over the ranks by sequences.
std::vector<data::Batch> rows_of_step(const data::Sampler& sampler, std::int64_t position,
                                      const TrainConfig& config, const Communicator& world);

}  // namespace moecollab::train
