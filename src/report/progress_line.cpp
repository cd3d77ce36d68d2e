#include "moecollab/report/progress_line.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ostream>

namespace moecollab::report {

namespace {

constexpr double kBarEveryS = 0.2;
constexpr std::int64_t kBarWidth = 30;
constexpr const char* kEraseLine = "\r\033[K";

}  // namespace

namespace {
// Open MPI gives every rank a pseudo-terminal to write to; what counts is where mpirun, its parent on the
// first host, writes.
bool is_terminal(int file_descriptor) {
  if (::isatty(file_descriptor) != 1) return false;
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) return true;
  const std::string path = "/proc/" + std::to_string(::getppid()) + "/fd/" + std::to_string(file_descriptor);
  const int launcher = ::open(path.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC);
  if (launcher < 0) return false;
  const bool terminal = ::isatty(launcher) == 1;
  ::close(launcher);
  return terminal;
}
}  // namespace

bool wants_bar(int file_descriptor) {
  const char* terminal = std::getenv("TERM");
  return is_terminal(file_descriptor) && terminal != nullptr && std::string(terminal) != "dumb";
}

bool wants_color(int file_descriptor) {
  const char* no_color = std::getenv("NO_COLOR");
  return wants_bar(file_descriptor) && (no_color == nullptr || *no_color == '\0');
}

ProgressLine::ProgressLine(std::ostream& out, const ProgressOptions& options, double start_s)
    : out_(out), options_(options), start_s_(start_s), line_s_(start_s), bar_s_(start_s) {}

void ProgressLine::step(std::int64_t step, double now_s, const ProgressValues& values) {
  const bool first = step == options_.first_step, last = step >= options_.total_steps;
  if (first || last || now_s - line_s_ >= options_.log_every_s) {
    clear_bar();
    out_ << text(step, now_s, values) << '\n';
    line_s_ = now_s;
  }
  if (options_.bar && !last && (!bar_shown_ || now_s - bar_s_ >= kBarEveryS)) {
    clear_bar();
    out_ << bar(step, now_s);
    bar_s_ = now_s;
    bar_shown_ = true;
  }
  out_.flush();
}

void ProgressLine::note(const std::string& text) {
  clear_bar();
  out_ << text << '\n';
  out_.flush();
}

void ProgressLine::clear_bar() {
  if (bar_shown_) out_ << kEraseLine;
  bar_shown_ = false;
}

double ProgressLine::remaining_s(std::int64_t step, double now_s) const {
  const double done = static_cast<double>(step - options_.first_step + 1);
  return (now_s - start_s_) / done *
         static_cast<double>(std::max<std::int64_t>(options_.total_steps - step, 0));
}

std::string ProgressLine::text(std::int64_t step, double now_s, const ProgressValues& v) const {
  const std::string total = fmt::format("{}", options_.total_steps);
  const std::string head = fmt::format("step {:>{}}/{}", step, total.size(), total);
  const char* on = options_.color ? "\033[1m" : "";
  const char* off = options_.color ? "\033[0m" : "";
  return fmt::format("{}{}{}  loss {:.4f}  lr {:.2e}  grad norm {:.3f}  {} tokens/s  {} left", on, head, off,
                     v.loss, v.lr, v.grad_norm, short_number(v.tokens_per_s),
                     short_duration(remaining_s(step, now_s)));
}

std::string ProgressLine::bar(std::int64_t step, double now_s) const {
  const std::int64_t total = std::max<std::int64_t>(options_.total_steps, 1);
  const auto filled =
      static_cast<std::size_t>(std::clamp<std::int64_t>(kBarWidth * step / total, 0, kBarWidth));
  return fmt::format("[{}{}] {}/{}  {} left", std::string(filled, '#'),
                     std::string(static_cast<std::size_t>(kBarWidth) - filled, '.'), step,
                     options_.total_steps, short_duration(remaining_s(step, now_s)));
}

std::string short_number(double value) {
  if (!std::isfinite(value)) return "?";
  constexpr const char* kUnits[] = {"", "k", "M", "G", "T"};
  std::size_t unit = 0;
  // 999.5 would be written as 1000.
  while (std::abs(value) >= 999.5 && unit + 1 < std::size(kUnits)) {
    value /= 1000.0;
    ++unit;
  }
  const double size = std::abs(value);
  const int digits = size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f}{}", value, digits, kUnits[unit]);
}

std::string short_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0.0 || seconds > 1e9) return "?";
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  const std::int64_t hours = whole / 3600, minutes = whole / 60 % 60, rest = whole % 60;
  return hours > 0 ? fmt::format("{}:{:02}:{:02}", hours, minutes, rest)
                   : fmt::format("{}:{:02}", minutes, rest);
}

}  // namespace moecollab::report
