// Flight records of a run, <run>/flight/rank-<R>.txt: written while it runs, read when it is started again to
// say how the run before it ended.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "moecollab/comm/communicator.hpp"
#include "moecollab/core/phase.hpp"

namespace moecollab::app {

struct FlightNote {
  int rank = 0;
  std::string host;
  std::int64_t pid = 0;
  std::int64_t step = 0;
  std::string phase;
  std::int64_t alive_ms = 0;  // since 1970
  std::string status;
};

// The line of a FlightRecord; empty when it is none.
std::optional<FlightNote> parse_flight(const std::string& line);
// Of every rank of the run before, by rank. Files that cannot be read are left out.
std::vector<FlightNote> read_flights(const std::string& run_dir);

// One line on the end of the run before: the rank that failed or fell silent, and where. Ranks that were told
// to terminate, or lived on after others, died of another's death and are not the cause. Empty when that run
// ended well, or there was none.
std::string previous_end(std::span<const FlightNote> notes);

// Prints the above on rank 0, removes the old records and opens this rank's own. Collective.
std::unique_ptr<FlightRecord> open_flight(const std::string& run_dir, const Communicator& world);

// Notes SIGTERM and SIGINT in the record; the signal then ends the process as always.
void note_termination(FlightRecord* record);
// From here on the record's status is final.
void stop_noting_termination();

}  // namespace moecollab::app
