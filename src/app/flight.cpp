#include "app/flight.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string_view>

namespace moecollab::app {

namespace {

constexpr const char* kTerminated = "terminated from outside";
constexpr std::string_view kErrorPrefix = "error: ";
// Half of the time Open MPI takes, and several signs of life.
constexpr std::int64_t kOutlivedMs = 5 * FlightRecord::kAliveEveryMs;

// A signal handler gets no argument, so the record it writes to has to be reachable from here.
std::atomic<FlightRecord*> noted_record{nullptr};

extern "C" void on_termination(int signal) {
  FlightRecord* record = noted_record.load();
  if (record != nullptr) record->set_status(kTerminated);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

std::string flight_folder(const std::string& run_dir) { return run_dir + "/flight"; }

}  // namespace

std::optional<FlightNote> parse_flight(const std::string& line) {
  FlightNote note;
  char host[64] = "", phase[32] = "";
  long pid = 0;
  long long step = 0;
  long long alive_ms = 0;
  int status_at = 0;
  const int fields = std::sscanf(line.c_str(), "rank %d host %63s pid %ld step %lld phase %31s alive %lld %n",
                                 &note.rank, host, &pid, &step, phase, &alive_ms, &status_at);
  if (fields != 6 || status_at == 0) return std::nullopt;
  note.host = host;
  note.pid = pid;
  note.step = step;
  note.phase = phase;
  note.alive_ms = alive_ms;
  note.status = line.substr(static_cast<std::size_t>(status_at));
  note.status.erase(note.status.find_last_not_of(" \n") + 1);
  return note;
}

std::vector<FlightNote> read_flights(const std::string& run_dir) {
  std::vector<FlightNote> notes;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(flight_folder(run_dir), ignored)) {
    std::ifstream file(entry.path());
    std::string line;
    std::getline(file, line);
    if (auto note = parse_flight(line)) notes.push_back(std::move(*note));
  }
  std::sort(notes.begin(), notes.end(),
            [](const FlightNote& a, const FlightNote& b) { return a.rank < b.rank; });
  return notes;
}

std::string previous_end(std::span<const FlightNote> notes) {
  // A launcher sees a death and kills the others, Open MPI a second later, and some without the time to say
  // so.
  std::int64_t last_sign_ms = 0;
  for (const FlightNote& note : notes) last_sign_ms = std::max(last_sign_ms, note.alive_ms);
  const auto outlived = [&](const FlightNote& note) { return note.alive_ms < last_sign_ms - kOutlivedMs; };
  const bool some_first = std::any_of(notes.begin(), notes.end(), [&](const FlightNote& note) {
    return note.status == "running" && outlived(note);
  });

  const FlightNote *failed = nullptr, *silent = nullptr, *terminated = nullptr;
  std::size_t num_silent = 0;
  for (const FlightNote& note : notes) {
    if (some_first && note.status == "running" && !outlived(note)) continue;
    if (note.status == "done") continue;
    if (note.status == kTerminated) {
      if (terminated == nullptr) terminated = &note;
    } else if (note.status == "running") {
      if (silent == nullptr) silent = &note;
      ++num_silent;
    } else if (failed == nullptr) {
      failed = &note;
    }
  }
  const auto where = [](const FlightNote& note) {
    return fmt::format("in phase {} at step {} on {}", note.phase, note.step, note.host);
  };
  if (failed != nullptr)
    return fmt::format(
        "the previous run ended: rank {} failed {}: {}", failed->rank, where(*failed),
        failed->status.substr(failed->status.starts_with(kErrorPrefix) ? kErrorPrefix.size() : 0));
  if (silent != nullptr && num_silent == notes.size() && num_silent > 1)
    return fmt::format("the previous run ended: all {} ranks died at once, rank {} {}", num_silent,
                       silent->rank, where(*silent));
  if (silent != nullptr)
    return fmt::format("the previous run ended: rank {} died {}{}", silent->rank, where(*silent),
                       num_silent > 1 ? fmt::format(" (and {} more)", num_silent - 1) : "");
  if (terminated != nullptr)
    return fmt::format("the previous run was terminated from outside, rank {} {}", terminated->rank,
                       where(*terminated));
  return "";
}

std::unique_ptr<FlightRecord> open_flight(const std::string& run_dir, const Communicator& world) {
  const std::string folder = flight_folder(run_dir);
  if (world.rank() == 0) {
    const std::string end = previous_end(read_flights(run_dir));
    if (!end.empty()) fmt::print(stderr, "moecollab: {}\n", end);
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
  }
  world.barrier();
  return std::make_unique<FlightRecord>(fmt::format("{}/rank-{}.txt", folder, world.rank()), world.rank());
}

void note_termination(FlightRecord* record) {
  noted_record.store(record);
  std::signal(SIGTERM, on_termination);
  std::signal(SIGINT, on_termination);
}

void stop_noting_termination() {
  std::signal(SIGTERM, SIG_DFL);
  std::signal(SIGINT, SIG_DFL);
  noted_record.store(nullptr);
}

}  // namespace moecollab::app
