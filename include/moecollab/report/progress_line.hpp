// What a person watching the run sees: a line every few seconds, and on a terminal a bar below it. Rank 0 has
// one; other ranks have none.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>

namespace moecollab::report {

struct ProgressOptions {
  std::int64_t first_step = 1;  // first step of this process; after a resume not 1
  std::int64_t total_steps = 0;
  double log_every_s = 2.0;  // least time between lines
  bool bar = false;          // redraws in place: only for a terminal
  bool color = false;
};

// Bar and color for output to the file descriptor: only when it is a terminal (TERM other than "dumb"), color
// only while NO_COLOR is unset or empty.
bool wants_bar(int file_descriptor);
bool wants_color(int file_descriptor);

struct ProgressValues {
  double loss = 0.0;
  double tokens_per_s = 0.0;
  double lr = 0.0;
  double grad_norm = 0.0;
};

class ProgressLine {
 public:
  // `start_s`: the time now, on the clock of `now_s` below (any clock that does not jump).
  ProgressLine(std::ostream& out, const ProgressOptions& options, double start_s);

  // After each step. The first step and the last are always shown; between them a line appears when at least
  // log_every_s have passed since the one before.
  void step(std::int64_t step, double now_s, const ProgressValues& values);
  // A line of its own between progress lines (an evaluation, a checkpoint).
  void note(const std::string& text);

 private:
  std::string text(std::int64_t step, double now_s, const ProgressValues& values) const;
  std::string bar(std::int64_t step, double now_s) const;
  double remaining_s(std::int64_t step, double now_s) const;
  void clear_bar();

  std::ostream& out_;
  ProgressOptions options_;
  double start_s_, line_s_, bar_s_;
  bool bar_shown_ = false;
};

// "12.3k", "1.20M": three significant digits.
std::string short_number(double value);
// "0:42", "1:02:03"; "?" when not finite or negative.
std::string short_duration(double seconds);

}  // namespace moecollab::report
