#include "moecollab/core/phase.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>

#include "moecollab/core/error.hpp"

namespace moecollab {

const char* to_string(Phase phase) {
  static constexpr const char* kNames[kNumPhases] = {"other",      "data",        "route",      "permute",
                                                     "all_to_all", "expert_gemm", "combine",    "attention",
                                                     "all_reduce", "optimizer",   "checkpoint", "eval"};
  return kNames[static_cast<std::size_t>(phase)];
}

namespace {
// Columns of the record: prefix (rank, host, pid), step, phase, alive, status.
constexpr std::size_t kStepColumn = 96, kPhaseColumn = 120, kAliveColumn = 144, kStatusColumn = 168,
                      kLineBytes = 512;

void put(char* field, std::size_t width, const char* text) noexcept {
  std::size_t i = 0;
  for (; i < width && text[i] != '\0' && text[i] != '\n'; ++i) field[i] = text[i];
  for (; i < width; ++i) field[i] = ' ';
}
}  // namespace

FlightRecord::FlightRecord(const std::string& path, int rank) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) throw IoError("cannot open the flight record " + path + ": " + std::strerror(errno));
  if (::ftruncate(fd, kLineBytes) != 0) {
    const int error = errno;
    ::close(fd);
    throw IoError("cannot size the flight record " + path + ": " + std::strerror(error));
  }
  void* p = ::mmap(nullptr, kLineBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  const int error = errno;
  ::close(fd);
  if (p == MAP_FAILED) throw IoError("cannot map the flight record " + path + ": " + std::strerror(error));
  line_ = static_cast<char*>(p);
  std::memset(line_, ' ', kLineBytes);
  line_[kLineBytes - 1] = '\n';
  char host[64] = "?";
  ::gethostname(host, sizeof host - 1);
  char prefix[kStepColumn];
  std::snprintf(prefix, sizeof prefix, "rank %d  host %.40s  pid %ld", rank, host,
                static_cast<long>(::getpid()));
  put(line_, kStepColumn, prefix);
  set_step(0);
  set_phase(Phase::other);
  set_alive();
  set_status("running");
  heart_ = std::jthread([this](const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (!stopping_.wait_for(lock, stop, std::chrono::milliseconds(kAliveEveryMs),
                               [&stop] { return stop.stop_requested(); }))
      set_alive();
  });
}

FlightRecord::~FlightRecord() {
  heart_.request_stop();
  heart_.join();
  ::munmap(line_, kLineBytes);
}

void FlightRecord::set_alive() noexcept {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  char text[kStatusColumn - kAliveColumn + 1];
  std::snprintf(text, sizeof text, "alive %lld",
                static_cast<long long>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()));
  put(line_ + kAliveColumn, kStatusColumn - kAliveColumn, text);
}

void FlightRecord::set_phase(Phase phase) noexcept {
  char text[kAliveColumn - kPhaseColumn + 1] = "phase ";
  put(text + 6, sizeof text - 7, to_string(phase));
  put(line_ + kPhaseColumn, kAliveColumn - kPhaseColumn, text);
}

void FlightRecord::set_step(std::int64_t step) noexcept {
  char text[kPhaseColumn - kStepColumn + 1];
  std::snprintf(text, sizeof text, "step %lld", static_cast<long long>(step));
  put(line_ + kStepColumn, kPhaseColumn - kStepColumn, text);
}

void FlightRecord::set_status(const char* status) noexcept {
  put(line_ + kStatusColumn, kLineBytes - 1 - kStatusColumn, status);
}

Phase PhaseClock::enter(Phase phase) noexcept {
  const Clock::time_point now = Clock::now();
  ms_[static_cast<std::size_t>(current_)] += std::chrono::duration<double, std::milli>(now - since_).count();
  since_ = now;
  const Phase outer = current_;
  current_ = phase;
  // An error on its way up leaves scope after scope; the record keeps the phase in which it arose.
  if (record_ != nullptr && phase != outer && std::uncaught_exceptions() == 0) record_->set_phase(phase);
  return outer;
}

std::array<double, kNumPhases> PhaseClock::lap_ms() {
  enter(current_);
  std::array<double, kNumPhases> lap{};
  std::swap(lap, ms_);
  return lap;
}

}  // namespace moecollab
