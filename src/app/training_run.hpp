// A run: steps from where the model stands to settings.train.steps, with evaluations, checkpoints and a log.
#pragma once

#include "app/commands.hpp"
#include "app/device.hpp"
#include "app/model_files.hpp"
#include "moecollab/data/dataset.hpp"
#include "moecollab/nn/parallel.hpp"

namespace moecollab::app {

// OpenMP threads of this rank: settings.train.threads, or the host's cores shared between its ranks.
void set_threads(const config::Settings& settings, const Communicator& world);

// Trains `model` on `device` until settings.train.steps and leaves a checkpoint of the last step in
// settings.run.dir. Collective.
void train_to_the_end(const Job& job, const nn::Parallel& parallel, Model& model,
                      const data::Dataset& dataset, const ChosenDevice& device);

}  // namespace moecollab::app
