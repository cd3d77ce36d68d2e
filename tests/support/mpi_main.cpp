// main() for GoogleTest under MPI. Every rank runs the same tests in the same order and, after each test, the
// ranks agree on its result: a failure on one rank fails the test on all. Rank 0 reports; the others print
// only their own failures. When the ranks do not all finish a test in time, because one left early while the
// rest wait in a collective, the first to notice names the test and ends the job: a hang becomes a failure.
#include <gtest/gtest.h>
#include <mpi.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

namespace {

constexpr const char* kElsewhere = "failed on rank ";
constexpr int kHangExitCode = 99;

struct Ranks {
  MPI_Comm comm = MPI_COMM_NULL;  // of our own, so that stray messages of a test cannot match ours
  int rank = 0;
  int size = 1;
  double limit_s = 60.0;  // MOECOLLAB_TEST_LIMIT_S: from the first rank's end of a test to the last one's
};

class AgreeOnResult : public testing::EmptyTestEventListener {
 public:
  explicit AgreeOnResult(const Ranks& ranks) : ranks_(ranks) {}

  // The test is still open here: a failure added now counts for it.
  void OnTestEnd(const testing::TestInfo& test) override {
    const bool failed = test.result()->Failed();
    const int mine = failed ? ranks_.rank : ranks_.size;
    int first = ranks_.size;
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Iallreduce(&mine, &first, 1, MPI_INT, MPI_MIN, ranks_.comm, &request);
    const double deadline_s = MPI_Wtime() + ranks_.limit_s;
    for (int done = 0; done == 0;) {
      MPI_Test(&request, &done, MPI_STATUS_IGNORE);
      if (done != 0) break;
      if (MPI_Wtime() > deadline_s) give_up(test, failed);
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
    if (first < ranks_.size && !failed) ADD_FAILURE() << kElsewhere << first;
  }

 private:
  void give_up(const testing::TestInfo& test, bool failed) const {
    std::fprintf(stderr, "[rank %d] %s.%s hangs: it %s here, other ranks did not finish it within %.0f s\n",
                 ranks_.rank, test.test_suite_name(), test.name(), failed ? "failed" : "passed",
                 ranks_.limit_s);
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, kHangExitCode);
  }
  const Ranks& ranks_;
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
  if (const char* limit = std::getenv("MOECOLLAB_TEST_LIMIT_S")) ranks.limit_s = std::atof(limit);

  testing::InitGoogleTest(&argc, argv);
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  if (ranks.rank != 0) {
    delete listeners.Release(listeners.default_result_printer());
    delete listeners.Release(listeners.default_xml_generator());
    listeners.Append(new PrintFailuresOnly(ranks.rank));
  }
  // "End" events run from the last listener to the first: the agreement before the report.
  listeners.Append(new AgreeOnResult(ranks));

  const int mine = RUN_ALL_TESTS();
  int any = 0;
  MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, ranks.comm);
  MPI_Comm_free(&ranks.comm);
  MPI_Finalize();
  return any;
}
