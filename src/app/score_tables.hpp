// Evaluations as tables for people.
#pragma once

#include <string>
#include <vector>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/report/table.hpp"
#include "moecollab/train/evaluate.hpp"

namespace moecollab::app {

struct NamedScores {
  std::string name;
  train::Scores scores;
};

// A row per domain, a column per model: bits per byte of language models, accuracy and macro-F1 of
// classifiers.
report::Table quality_table(const std::vector<NamedScores>& models);
// A row per domain, a column per expert: share of the domain's picks in percent.
report::Table routing_table(const train::Scores& scores, const ExpertSlots& slots);
// A row per model: H_tok, H_bat, utilisation.
report::Table entropy_table(const std::vector<NamedScores>& models);

}  // namespace moecollab::app
