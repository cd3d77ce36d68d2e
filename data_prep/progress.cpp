#include "progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace moecollab::prepare {

Progress::Progress(std::string what, std::int64_t total_bytes, bool quiet)
    : what_(std::move(what)),
      total_bytes_(total_bytes),
      quiet_(quiet),
      terminal_(::isatty(STDERR_FILENO) == 1),
      next_(start_ + std::chrono::seconds(1)) {}

Progress::~Progress() {
  if (shown_ && terminal_) std::fputc('\n', stderr);
}

void Progress::update(std::int64_t done_bytes) {
  const Clock::time_point now = Clock::now();
  if (quiet_ || now < next_) return;
  next_ = now + std::chrono::seconds(terminal_ ? 1 : 10);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done_bytes) / seconds;
  const double left_s = rate > 0.0 ? static_cast<double>(total_bytes_ - done_bytes) / rate : 0.0;
  const std::string line =
      fmt::format("{} {:5.1f} % of {:.1f} MB, {:.1f} MB/s, {:.0f} s left", what_,
                  100.0 * static_cast<double>(done_bytes) / static_cast<double>(total_bytes_),
                  static_cast<double>(total_bytes_) * 1e-6, rate * 1e-6, left_s);
  std::fputs(terminal_ ? fmt::format("\r{:<78}", line).c_str() : (line + "\n").c_str(), stderr);
  std::fflush(stderr);
  shown_ = true;
}

}  // namespace moecollab::prepare
