// Where a step spends its time, and where a rank was when it died.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace moecollab {

enum class Phase : std::uint8_t {
  other,
  data,
  route,
  permute,
  all_to_all,
  expert_gemm,
  combine,
  attention,
  all_reduce,
  optimizer,
  checkpoint,
  eval,
  count_
};
const char* to_string(Phase phase);
constexpr std::size_t kNumPhases = static_cast<std::size_t>(Phase::count_);

// One rank's flight record: a small text file mapped into memory, so that the last phase survives any death
// of the process, SIGKILL included. A line of fixed width: rank, host, pid, step, phase, alive, status. A
// thread of its own notes every kAliveEveryMs that the process still lives: who died first shows in that,
// also when a launcher kills all others a moment later.
class FlightRecord {
 public:
  static constexpr std::int64_t kAliveEveryMs = 100;

  // Maps (creates or overwrites) `path`. Throws IoError.
  FlightRecord(const std::string& path, int rank);
  ~FlightRecord();
  FlightRecord(const FlightRecord&) = delete;
  FlightRecord& operator=(const FlightRecord&) = delete;

  void set_phase(Phase phase) noexcept;
  void set_step(std::int64_t step) noexcept;
  // "running", "done", "error: ...", "terminated": async-signal-safe, cut to the width of the field.
  void set_status(const char* status) noexcept;

 private:
  void set_alive() noexcept;  // milliseconds since 1970: hosts share no other clock

  char* line_ = nullptr;
  std::mutex mutex_;
  std::condition_variable_any stopping_;
  std::jthread heart_;  // last: it uses the others
};

// Times phases and notes them in the flight record. Nested scopes pause the outer one, so the sum over phases
// is the wall time between `start` and `lap`.
class PhaseClock {
 public:
  void attach(FlightRecord* record) { record_ = record; }
  FlightRecord* record() const { return record_; }
  Phase enter(Phase phase) noexcept;  // returns the phase that was running
  // Milliseconds per phase since the last call; starts anew.
  std::array<double, kNumPhases> lap_ms();

 private:
  using Clock = std::chrono::steady_clock;
  Phase current_ = Phase::other;
  Clock::time_point since_ = Clock::now();
  std::array<double, kNumPhases> ms_{};
  FlightRecord* record_ = nullptr;
};

class PhaseScope {
 public:
  PhaseScope(PhaseClock& clock, Phase phase) : clock_(clock), outer_(clock.enter(phase)) {}
  ~PhaseScope() { clock_.enter(outer_); }
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  PhaseClock& clock_;
  Phase outer_;
};

}  // namespace moecollab
