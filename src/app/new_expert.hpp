// How a contributor's expert begins: as a copy of the anchor's expert that its domain already uses most, so
// that the model starts out as good as the anchor.
#pragma once

#include "app/model_files.hpp"
#include "moecollab/core/step.hpp"
#include "moecollab/data/dataset.hpp"

namespace moecollab::app {

// Slot (position) of the expert that the training data picks most, over a few batches. The same on every
// rank.
std::int32_t most_picked_expert(Step& step, const Model& model, const nn::Parallel& parallel,
                                const data::Dataset& dataset, const config::Settings& settings);

// The slot that settings.contributor and settings.expert describe; kind and width, where they were not given,
// are those of `from`. `base_digest`: of the anchor.
ExpertSlot new_slot(const config::Settings& settings, const ExpertSlot& from, const std::string& base_digest);

// Appends that slot. Weights: hidden units of `source` up to
// the smaller width; further units draw their inputs at random and start with zero outputs. Adapters, or a
// source of another kind: random inputs, zero outputs. Router rows and logit biases: those of `source`.
// Afterwards only the new expert learns.
void add_expert_like(Model& model, const nn::Parallel& parallel, const config::Settings& settings,
                     std::int32_t source);

// The new expert is always among the picks while it is trained alone: a selection bias that no score reaches.
// `false` takes it back.
void force_last_expert(Model& model, bool always_picked);

}  // namespace moecollab::app
