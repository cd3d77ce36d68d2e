// One function per verb. Each runs on every rank of the job, throws the errors of core/error.hpp, and returns
// when its work is done.
#pragma once

#include "moecollab/comm/communicator.hpp"
#include "moecollab/config/settings.hpp"
#include "moecollab/core/phase.hpp"

namespace moecollab::app {

// Everything a command works with on this rank.
struct Job {
  const config::Settings& settings;
  config::Verb verb;
  Communicator world;
  PhaseClock& clock;
};

void run_train(const Job& job);
void run_expert_train(const Job& job);
void run_assemble(const Job& job);
void run_eval(const Job& job);
void run_generate(const Job& job);
void run_selftest(const Job& job);

}  // namespace moecollab::app
