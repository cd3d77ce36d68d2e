// Jobs that are cut off, or that may not start.
#include "app/flight.hpp"
#include "e2e_run.hpp"

namespace moecollab::app {
namespace {

using Faults = EndToEnd;

bool at_work(const std::string& run, std::size_t ranks, std::int64_t step) {
  const std::vector<FlightNote> notes = read_flights(run);
  if (notes.size() != ranks) return false;
  for (const FlightNote& note : notes)
    if (note.status != "running" || note.step < step) return false;
  return true;
}

TEST_F(Faults, ADiskThatFillsUpWhileSavingIs75AndLosesNothing) {
  const std::string data = make_data("data.h5", {"weather"});
  const std::string run = folder_ / "run";
  const auto words = [&](int steps) { return train(run, data, {"--train.steps=" + std::to_string(steps)}); };
  expect_done(moecollab(words(2)));
  const Contents saved = contents_at(run, 2);
  // Larger than metrics and records, smaller than the trunk.
  constexpr rlim_t kBytes = 40000;
  const ProgramResult full = Program(alone(words(4)), kBytes).wait();
  expect_failure(full, 75, {store::checkpoint_directory(run, 4), "moecollab: "});
  EXPECT_EQ(count(full.errors, "moecollab: "), 1U) << full.errors;
  std::size_t directories = 0;
  for (const auto& entry : std::filesystem::directory_iterator(run + "/checkpoints")) {
    EXPECT_EQ(entry.path().filename(), "step-00000002");
    ++directories;
  }
  EXPECT_EQ(directories, 1U);
  EXPECT_EQ(contents_at(run, 2), saved);
  const std::vector<FlightNote> notes = read_flights(run);
  ASSERT_EQ(notes.size(), 1U);
  EXPECT_EQ(notes[0].phase, "checkpoint");
  const ProgramResult again = moecollab(words(4));
  expect_done(again);
  EXPECT_NE(again.errors.find("the previous run ended: rank 0 failed in phase checkpoint at step 4"),
            std::string::npos)
      << again.errors;
  EXPECT_EQ(losses_of(run).size(), 4U);
}

TEST_F(Faults, OneKilledRankOfThreeEndsTheJobSoonAndIsNamed) {
  const std::string data = make_data("data.h5", {"weather"});
  const std::string run = folder_ / "run";
  Program running(on_ranks(3, train(run, data, {"--train.steps=1000000", "--optimizer.schedule=constant"})));
  ASSERT_TRUE(wait_until([&] { return at_work(run, 3, 3); }));
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(::kill(static_cast<pid_t>(read_flights(run).at(1).pid), SIGKILL), 0);
  EXPECT_NE(running.wait().exit_code, 0);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  const FlightNote dead = read_flights(run).at(1);
  const ProgramResult next = moecollab_on(3, train(run, data, {"--train.steps=1"}));
  expect_done(next);
  const std::string expected =
      "the previous run ended: rank 1 died in phase " + dead.phase + " at step " + std::to_string(dead.step);
  EXPECT_EQ(count(next.errors, expected), 1U) << next.errors << expected;
}

TEST_F(Faults, ASecondJobInALiveRunIsRefusedAndDisturbsNothing) {
  const std::string data = make_data("data.h5", {"weather"});
  const std::string run = folder_ / "run";
  Program running(alone(train(run, data, {"--train.steps=1000000", "--optimizer.schedule=constant"})));
  ASSERT_TRUE(wait_until([&] { return at_work(run, 1, 2); }));
  for (const int ranks : {1, 2}) {
    const ProgramResult second = moecollab_on(ranks, train(run, data, {"--train.steps=3"}));
    expect_failure(second, 64,
                   {"another job is at work in " + run, "process " + std::to_string(running.pid())});
    EXPECT_EQ(count(second.errors, "moecollab: "), 1U) << second.errors;
  }
  const std::vector<FlightNote> notes = read_flights(run);
  ASSERT_EQ(notes.size(), 1U);
  EXPECT_EQ(notes[0].pid, running.pid());
  EXPECT_EQ(notes[0].status, "running");
  // The lock goes with its process.
  ::kill(running.pid(), SIGKILL);
  running.wait();
  EXPECT_TRUE(std::filesystem::exists(run + "/lock"));
  expect_done(moecollab_on(2, train(run, data, {"--train.steps=1"})));
}

TEST_F(Faults, ARunStaysWithItsDataButMayChangeItsBatch) {
  const std::string data = make_data("data.h5", {"weather"}), other = make_data("other.h5", {"kitchen"});
  const std::string run = folder_ / "run";
  const auto words = [&](const std::string& on, int steps, int batch_size) {
    Words all{"train", "--run", run, "--data", on, "--train.steps=" + std::to_string(steps)};
    for (const std::string& word : train(run, on, {}))
      if (word.starts_with("--model.") || word.starts_with("--expert.")) all.push_back(word);
    return joined(all, {"--train.seq_len=32", "--train.eval_sequences=2", "--train.threads=1",
                        "--optimizer.warmup_steps=1", "--train.batch_size=" + std::to_string(batch_size)});
  };
  expect_done(moecollab(words(data, 3, 6)));
  expect_failure(moecollab_on(2, words(other, 5, 6)), 64, {"other data than " + other, "run.init"});
  EXPECT_EQ(store::latest_checkpoint(run).step, 3);
  // The position in the data counts sequences, so none is read twice and none is left out.
  expect_done(moecollab(words(data, 5, 4)));
  EXPECT_EQ(store::read_manifest(store::checkpoint_directory(run, 5)).state.data_position, 3 * 6 + 2 * 4);
}

TEST_F(Faults, TheConfigInACheckpointGoesOnWithTheRun) {
  const std::string data = make_data("data.h5", {"weather"});
  const std::string run = folder_ / "run";
  expect_done(moecollab(train(run, data, {"--train.steps=2"})));
  const std::string config = store::checkpoint_directory(run, 2) + "/config.ini";
  EXPECT_NE(test::slurp(config).find("vocab_size = 259\n"), std::string::npos);
  expect_done(moecollab({"train", "--config", config, "--train.steps", "3"}));
  EXPECT_EQ(losses_of(run).size(), 3U);
}

}  // namespace
}  // namespace moecollab::app
