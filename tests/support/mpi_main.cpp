// main() for GoogleTest under MPI. Every rank runs the same tests in the same order and, after each test, the
// ranks agree on its result: a failure on one rank fails the test on all. Rank 0 reports; the others print
// only their own failures. When a test does not end in time on every rank (one left early while the rest wait
// in a collective, or all wait for each other), each rank that notices names the test and what it is doing,
// and the job ends: a hang becomes a failure.
#include <gtest/gtest.h>
#include <mpi.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kElsewhere = "failed on rank ";
constexpr int kHangExitCode = 99;

struct Ranks {
  MPI_Comm comm = MPI_COMM_NULL;  // of our own, so that stray messages of a test cannot match ours
  int rank = 0;
  int size = 1;
};

// Ends the process when a test takes longer than the limit. It does not call MPI (the thread that does is
// stuck); mpirun ends the other ranks.
class Watchdog {
 public:
  Watchdog(int rank, double limit_s)
      : rank_(rank), limit_s_(limit_s), thread_([this](std::stop_token stop) { run(stop); }) {}

  void start(const std::string& name) { set(name, "in the test", true); }
  void wait_for_others(bool failed) {
    set(name_, failed ? "failed here, waits for the other ranks" : "passed here, waits for the other ranks",
        true);
  }
  void stop() { set("", "", false); }

 private:
  void set(const std::string& name, const char* doing, bool armed) {
    const std::lock_guard lock(mutex_);
    if (armed && name != name_)
      deadline_ =
          Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(limit_s_));
    name_ = name, doing_ = doing, armed_ = armed;
    changed_.notify_all();
  }
  void run(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (!stop.stop_requested()) {
      if (!armed_) {
        changed_.wait(lock, stop, [this] { return armed_; });
      } else if (Clock::now() < deadline_) {
        changed_.wait_until(lock, stop, deadline_, [this] { return !armed_; });
      } else {
        std::fprintf(stderr, "[rank %d] %s hangs: not over on all ranks after %.0f s (%s)\n", rank_,
                     name_.c_str(), limit_s_, doing_);
        std::fflush(nullptr);
        std::_Exit(kHangExitCode);
      }
    }
  }

  int rank_;
  double limit_s_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::string name_;
  const char* doing_ = "";
  bool armed_ = false;
  Clock::time_point deadline_;
  std::jthread thread_;  // last: it uses all of the above
};

class AgreeOnResult : public testing::EmptyTestEventListener {
 public:
  AgreeOnResult(const Ranks& ranks, Watchdog& watchdog) : ranks_(ranks), watchdog_(watchdog) {}

  void OnTestStart(const testing::TestInfo& test) override {
    watchdog_.start(std::string(test.test_suite_name()) + "." + test.name());
  }
  // The test is still open here: a failure added now counts for it.
  void OnTestEnd(const testing::TestInfo& test) override {
    const bool failed = test.result()->Failed();
    watchdog_.wait_for_others(failed);
    const int mine = failed ? ranks_.rank : ranks_.size;
    int first = ranks_.size;
    MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, ranks_.comm);
    watchdog_.stop();
    if (first < ranks_.size && !failed) ADD_FAILURE() << kElsewhere << first;
  }

 private:
  const Ranks& ranks_;
  Watchdog& watchdog_;
};

class PrintFailuresOnly : public testing::EmptyTestEventListener {
 public:
  explicit PrintFailuresOnly(int rank) : rank_(rank) {}

  void OnTestStart(const testing::TestInfo& test) override {
    name_ = std::string(test.test_suite_name()) + "." + test.name();
  }
  void OnTestPartResult(const testing::TestPartResult& part) override {
    const std::string message = part.message();
    if (!part.failed() || message.find(kElsewhere) != std::string::npos) return;
    std::fprintf(stderr, "[rank %d] %s, %s:%d: %s\n", rank_, name_.c_str(),
                 part.file_name() != nullptr ? part.file_name() : "?", part.line_number(), message.c_str());
  }

 private:
  int rank_;
  std::string name_;
};

}  // namespace

int main(int argc, char** argv) {
  int provided = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  Ranks ranks;
  MPI_Comm_dup(MPI_COMM_WORLD, &ranks.comm);
  MPI_Comm_rank(ranks.comm, &ranks.rank);
  MPI_Comm_size(ranks.comm, &ranks.size);
  const char* limit = std::getenv("MOECOLLAB_TEST_LIMIT_S");  // per test
  Watchdog watchdog(ranks.rank, limit != nullptr ? std::atof(limit) : 120.0);

  testing::InitGoogleTest(&argc, argv);
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  if (ranks.rank != 0) {
    delete listeners.Release(listeners.default_result_printer());
    delete listeners.Release(listeners.default_xml_generator());
    listeners.Append(new PrintFailuresOnly(ranks.rank));
  }
  // "End" events run from the last listener to the first: the agreement before the report.
  listeners.Append(new AgreeOnResult(ranks, watchdog));

  const int mine = RUN_ALL_TESTS();
  int any = 0;
  MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, ranks.comm);
  MPI_Comm_free(&ranks.comm);
  MPI_Finalize();
  return any;
}
