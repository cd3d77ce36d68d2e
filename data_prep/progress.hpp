// A progress line on stderr: rewritten at most once a second on a terminal, a line every ten seconds
// elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace moecollab::prepare {

class Progress {
 public:
  Progress(std::string what, std::int64_t total_bytes, bool quiet);
  ~Progress();  // ends the line on a terminal
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(std::int64_t done_bytes);

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_;
  std::int64_t total_bytes_;
  bool quiet_;
  bool terminal_;
  bool shown_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_;
};

}  // namespace moecollab::prepare
