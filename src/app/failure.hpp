// How a job ends when something went wrong: one message, one exit code, no rank left waiting.
#pragma once

#include <optional>
#include <string>

#include "moecollab/comm/communicator.hpp"

namespace moecollab::app {

struct Failure {
  int exit_code = 0;
  std::string message;
};

// The exception being handled, as a message and the documented exit code. Call it inside a catch block.
Failure current_failure();

// "moecollab: rank R: message" on the error stream; the rank is left out in a job of one.
void print_failure(const Communicator& world, const Failure& failure);

// For work that every rank does before any communication: when a rank failed, the lowest one that did prints
// and every rank gets its exit code. Empty when none failed. Collective.
std::optional<int> settle_together(const Communicator& world, const std::optional<Failure>& failure);

// For a failure in the middle of the work, when the other ranks may be waiting for this one: prints and ends
// the whole job. Ranks above 0 wait a moment first, so that of ranks that failed alike only one speaks.
[[noreturn]] void end_job(const Communicator& world, const Failure& failure);

}  // namespace moecollab::app
