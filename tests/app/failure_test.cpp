// What a job says and leaves behind when it fails: exit codes, one message, and who died where.
#include "app/failure.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <functional>
#include <new>
#include <thread>

#include "app/flight.hpp"
#include "data/token_fixture.hpp"
#include "moecollab/core/error.hpp"
#include "run_program.hpp"

namespace moecollab::app {
namespace {

int code_of(const std::function<void()>& work) {
  try {
    work();
  } catch (...) {
    return current_failure().exit_code;
  }
  return 0;
}

TEST(Failure, EveryErrorHasItsDocumentedCode) {
  EXPECT_EQ(code_of([] { throw UsageError("x"); }), 64);
  EXPECT_EQ(code_of([] { throw DataError("x"); }), 65);
  EXPECT_EQ(code_of([] { throw CheckpointError("x"); }), 65);
  EXPECT_EQ(code_of([] { throw ContributionError("x"); }), 65);
  EXPECT_EQ(code_of([] { throw ShapeError("x"); }), 70);
  EXPECT_EQ(code_of([] { throw DTypeError("x"); }), 70);
  EXPECT_EQ(code_of([] { throw InternalError("x"); }), 70);
  EXPECT_EQ(code_of([] { throw std::runtime_error("x"); }), 70);
  EXPECT_EQ(code_of([] { throw IoError("x"); }), 75);
  EXPECT_EQ(code_of([] { throw std::bad_alloc(); }), 75);
  EXPECT_EQ(code_of([] { std::filesystem::create_directory("/dev/null/x"); }), 75);
  EXPECT_EQ(code_of([] { throw NonFiniteError("x"); }), 93);
}

class TrainedProgram : public ::testing::Test {
 protected:
  void SetUp() override {
    data::write_token_file(folder_ / "data.h5", data::numbered_documents("letters", 400), 0.1);
  }
  Words train(const Words& more) const {
    Words words{"train",
                "--run",
                folder_ / "run",
                "--data",
                folder_ / "data.h5",
                "--model.hidden_size=16",
                "--model.num_hidden_layers=2",
                "--model.num_attention_heads=2",
                "--model.num_key_value_heads=2",
                "--model.head_dim=8",
                "--expert.width=16",
                "--train.seq_len=32",
                "--train.batch_size=4",
                "--train.eval_sequences=2",
                "--optimizer.warmup_steps=0",
                "--train.threads=1"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  // Waits until every rank of the run has reached step `step`.
  std::vector<FlightNote> wait_for_step(std::size_t ranks, std::int64_t step) const {
    for (int i = 0; i < 600; ++i) {
      const std::vector<FlightNote> notes = read_flights(folder_ / "run");
      std::size_t there = 0;
      for (const FlightNote& note : notes) there += note.step >= step ? 1 : 0;
      if (there == ranks) return notes;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    ADD_FAILURE() << "the run did not reach step " << step;
    return {};
  }
  test::TemporaryDirectory folder_;
};

TEST_F(TrainedProgram, DoneIsZeroAndLeavesDoneInEveryRecord) {
  const ProgramResult result = moecollab_on(2, train({"--train.steps=3"}));
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  const std::vector<FlightNote> notes = read_flights(folder_ / "run");
  ASSERT_EQ(notes.size(), 2U);
  for (const FlightNote& note : notes) EXPECT_EQ(note.status, "done");
  EXPECT_EQ(previous_end(notes), "");
}

TEST_F(TrainedProgram, MissingDataIs65) {
  const ProgramResult result = moecollab_on(2, train({"--train.steps=3", "--model.dtype=f32"}));
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  std::filesystem::remove(folder_ / "data.h5");
  const ProgramResult missing = moecollab_on(2, train({"--train.steps=4"}));
  EXPECT_EQ(missing.exit_code, 65) << missing.errors;
  EXPECT_EQ(count(missing.errors, "moecollab: rank"), 1U) << missing.errors;
  EXPECT_NE(missing.errors.find(folder_ / "data.h5"), std::string::npos);
}

TEST_F(TrainedProgram, ARunDirectoryThatCannotBeMadeIs75) {
  Words words = train({"--train.steps=3"});
  words[2] = "/dev/null/run";
  EXPECT_EQ(moecollab(words).exit_code, 75);
}

TEST_F(TrainedProgram, ALossThatIsNoNumberIs93AndIsRemembered) {
  const Words words = train({"--train.steps=50", "--optimizer.lr=1e38", "--optimizer.clip_norm=0"});
  const ProgramResult result = moecollab(words);
  EXPECT_EQ(result.exit_code, 93) << result.errors;
  EXPECT_EQ(count(result.errors, "moecollab: "), 1U) << result.errors;
  const std::string end = previous_end(read_flights(folder_ / "run"));
  EXPECT_NE(end.find("rank 0 failed in phase"), std::string::npos) << end;
}

TEST_F(TrainedProgram, AKilledRankEndsTheJobAndIsNamedAtTheNextStart) {
  Program running(on_ranks(2, train({"--train.steps=1000000"})));
  const std::vector<FlightNote> notes = wait_for_step(2, 3);
  ASSERT_EQ(notes.size(), 2U);
  ASSERT_EQ(::kill(static_cast<pid_t>(notes[1].pid), SIGKILL), 0);
  EXPECT_NE(running.wait().exit_code, 0);
  const std::vector<FlightNote> after = read_flights(folder_ / "run");
  ASSERT_EQ(after.size(), 2U);
  EXPECT_EQ(after[1].status, "running");
  EXPECT_GE(after[1].step, 3);
  const ProgramResult next = moecollab_on(2, train({"--train.steps=1"}));
  EXPECT_EQ(next.exit_code, 0) << next.errors;
  const std::string expected = "the previous run ended: rank 1 died in phase " + after[1].phase +
                               " at step " + std::to_string(after[1].step);
  EXPECT_EQ(count(next.errors, expected), 1U) << next.errors;
}

TEST_F(TrainedProgram, ATerminatedRunSaysSo) {
  Words words{MC_PROGRAM};
  const Words rest = train({"--train.steps=1000000"});
  words.insert(words.end(), rest.begin(), rest.end());
  Program running(words);
  const std::vector<FlightNote> notes = wait_for_step(1, 1);
  ASSERT_EQ(notes.size(), 1U);
  ::kill(static_cast<pid_t>(notes[0].pid), SIGTERM);
  EXPECT_EQ(running.wait().exit_code, 128 + SIGTERM);
  const std::string end = previous_end(read_flights(folder_ / "run"));
  EXPECT_EQ(end.find("the previous run was terminated from outside, rank 0 in phase"), 0U) << end;
}

}  // namespace
}  // namespace moecollab::app
