#include "moecollab/core/phase.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>
#include <thread>

namespace moecollab {
namespace {

std::string read(const std::string& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

TEST(PhaseClock, NestedScopesShareTheWallTime) {
  PhaseClock clock;
  clock.lap_ms();
  const auto start = std::chrono::steady_clock::now();
  {
    const PhaseScope outer(clock, Phase::attention);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const PhaseScope inner(clock, Phase::all_to_all);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const auto lap = clock.lap_ms();
  const double wall =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  EXPECT_GE(lap[static_cast<std::size_t>(Phase::attention)], 20.0);
  EXPECT_GE(lap[static_cast<std::size_t>(Phase::all_to_all)], 10.0);
  const double sum = std::accumulate(lap.begin(), lap.end(), 0.0);
  EXPECT_LE(sum, wall + 1e-3);
  EXPECT_GE(sum, 30.0);
}

// What the record is for: the phase of a process that could not say goodbye.
TEST(FlightRecord, OutlivesAKilledProcess) {
  const std::string path = std::filesystem::temp_directory_path() / ("flight-" + std::to_string(::getpid()));
  const pid_t child = ::fork();
  if (child == 0) {
    FlightRecord record(path, 3);
    PhaseClock clock;
    clock.attach(&record);
    record.set_step(17);
    clock.enter(Phase::expert_gemm);
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  const std::string line = read(path);
  for (const char* part : {"rank 3 ", "step 17 ", "phase expert_gemm ", "running"})
    EXPECT_NE(line.find(part), std::string::npos) << part << " in " << line;
  EXPECT_EQ(line.back(), '\n');
  std::filesystem::remove(path);
}

TEST(FlightRecord, KeepsItsWidthWhateverIsSaid) {
  const std::string path = std::filesystem::temp_directory_path() / ("flight-w" + std::to_string(::getpid()));
  std::size_t size = 0;
  {
    FlightRecord record(path, 0);
    size = read(path).size();
    record.set_status(std::string(5000, 'x').c_str());
    record.set_status("two\nlines");
  }
  const std::string line = read(path);
  EXPECT_EQ(line.size(), size);
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  EXPECT_EQ(line.find('x'), std::string::npos);
  std::filesystem::remove(path);
}

TEST(PhaseClock, AnErrorLeavesItsPhaseInTheRecord) {
  const std::string path = std::filesystem::temp_directory_path() / ("error-" + std::to_string(::getpid()));
  FlightRecord record(path, 0);
  PhaseClock clock;
  clock.attach(&record);
  try {
    const PhaseScope outer(clock, Phase::checkpoint);
    const PhaseScope inner(clock, Phase::all_reduce);
    throw 1;
  } catch (int) {
  }
  EXPECT_NE(read(path).find("phase all_reduce "), std::string::npos) << read(path);
  { const PhaseScope next(clock, Phase::eval); }
  EXPECT_NE(read(path).find("phase other "), std::string::npos) << read(path);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace moecollab
