// What a run tells: a JSON line per step and per evaluation in <run>/metrics.jsonl, progress lines on rank 0,
// tables at the end.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "moecollab/config/settings.hpp"
#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/phase.hpp"
#include "moecollab/train/evaluate.hpp"
#include "moecollab/train/trainer.hpp"

namespace moecollab::app {

class TrainingLog {
 public:
  // Only rank 0 writes. Lines of `metrics.jsonl` after `resumed_step` are dropped: the run does them again.
  TrainingLog(const config::Settings& settings, const ExpertSlots& slots, int rank,
              std::int64_t resumed_step);
  ~TrainingLog();

  void say(const std::string& line);
  // `step_ms`: wall time of the step; `phases_ms`: of this rank.
  void step(const train::StepReport& report, double step_ms, const std::array<double, kNumPhases>& phases_ms);
  void saved(const std::string& directory, double save_ms);
  void evaluation(std::int64_t step, const train::Scores& scores);
  // Bits per byte (or accuracy and macro-F1) per domain, and where each domain's picks go.
  void tables(const train::Scores& scores);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;  // null on other ranks
};

}  // namespace moecollab::app
