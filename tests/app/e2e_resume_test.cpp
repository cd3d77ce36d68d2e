// A run that was interrupted ends with the bits of one that was not; on another number of ranks, with the
// same loss.
#include <cmath>
#include <limits>

#include "app/flight.hpp"
#include "e2e_run.hpp"

namespace moecollab::app {
namespace {

constexpr std::int64_t kSteps = 60;

struct Case {
  const char* dtype;
  int ranks;
};

void PrintTo(const Case& each, std::ostream* out) { *out << each.dtype << " on " << each.ranks; }

class Resume : public EndToEnd, public ::testing::WithParamInterface<Case> {};

TEST_P(Resume, AStopAndAKillLeaveNoTrace) {
  const auto [dtype, ranks] = GetParam();
  const std::string data = make_data("data.h5", {"weather", "kitchen"});
  const auto words = [&, type = dtype](const std::string& run, std::int64_t steps) {
    return train(run, data,
                 {"--train.steps=" + std::to_string(steps), "--train.checkpoint_every=5",
                  "--optimizer.schedule=constant", "--model.dtype=" + std::string(type),
                  "--train.selection_bias_rate=0.001", "--balance.balance=0.01"});
  };
  const std::string whole = folder_ / "whole", broken = folder_ / "broken";
  expect_done(moecollab_on(ranks, words(whole, kSteps)));

  expect_done(moecollab_on(ranks, words(broken, 7)));
  {
    const int victim = ranks - 1;
    Program running(ranks == 1 ? alone(words(broken, kSteps)) : on_ranks(ranks, words(broken, kSteps)));
    std::int64_t pid = 0;
    // In the middle of a step, with the last checkpoint one step or more behind.
    ASSERT_TRUE(wait_until([&, n = ranks] {
      const std::vector<FlightNote> notes = read_flights(broken);
      if (notes.size() != static_cast<std::size_t>(n)) return false;
      const FlightNote& note = notes[static_cast<std::size_t>(victim)];
      pid = note.pid;
      return note.status == "running" && note.step >= 12 && note.step % 5 >= 2;
    }));
    ASSERT_EQ(::kill(static_cast<pid_t>(pid), SIGKILL), 0);
    ASSERT_NE(running.wait().exit_code, 0);
  }
  const store::FoundCheckpoint left = store::latest_checkpoint(broken);
  ASSERT_GE(left.step, 10);
  ASSERT_LT(left.step, kSteps);
  const ProgramResult resumed = moecollab_on(ranks, words(broken, kSteps));
  expect_done(resumed);
  EXPECT_NE(resumed.output.find("going on after step " + std::to_string(left.step)), std::string::npos)
      << resumed.output;

  EXPECT_EQ(losses_of(broken).size(), static_cast<std::size_t>(kSteps));
  EXPECT_EQ(losses_of(broken), losses_of(whole));
  EXPECT_EQ(contents_at(broken, kSteps), contents_at(whole, kSteps));
}

INSTANTIATE_TEST_SUITE_P(TypesAndRanks, Resume,
                         ::testing::Values(Case{"f32", 1}, Case{"bf16", 1}, Case{"f32", 2}, Case{"bf16", 2}),
                         [](const auto& each) {
                           return std::string(each.param.dtype) + "_on_" + std::to_string(each.param.ranks);
                         });

TEST_F(EndToEnd, AnyNumberOfThreadsGivesTheSameBits) {
  const std::string data = make_data("data.h5", {"weather"});
  for (const int threads : {1, 2}) {
    const std::string run = folder_ / std::to_string(threads);
    expect_done(moecollab(train(run, data, {"--train.steps=4"}, threads)));
  }
  EXPECT_EQ(losses_of(folder_ / "1"), losses_of(folder_ / "2"));
  EXPECT_EQ(contents_at(folder_ / "1", 4), contents_at(folder_ / "2", 4));
}

// Saved on P ranks, gone on with on another number. The weights are the same to the bit, so the next loss can
// differ only by the order of sums.
TEST_F(EndToEnd, ARunMovesToAnyNumberOfRanks) {
  const std::string data = make_data("data.h5", {"weather", "kitchen"});
  const auto words = [&](const std::string& run, std::int64_t steps) {
    return train(run, data,
                 {"--train.steps=" + std::to_string(steps), "--expert.num_experts=5",
                  "--optimizer.schedule=constant"});
  };
  // n: what one element of the chain sums at most, the targets of a batch or the width of a layer's widest
  // product; each of the two layers and the head adds its share.
  constexpr double kBound = 3.0 * 6.0 * 32.0 * static_cast<double>(std::numeric_limits<float>::epsilon());
  std::string run = folder_ / "1";
  expect_done(moecollab(words(run, 2)));
  std::int64_t step = 2;
  int from = 1;
  for (const int to : {3, 2, 1}) {
    const std::string stayed = folder_ / ("stayed-on-" + std::to_string(from));
    const std::string moved = folder_ / ("moved-to-" + std::to_string(to));
    copy_run(run, stayed);
    copy_run(run, moved);
    ++step;
    expect_done(moecollab_on(from, words(stayed, step)));
    expect_done(moecollab_on(to, words(moved, step)));
    const auto last = [](const std::string& of) { return std::stod(losses_of(of).back()); };
    EXPECT_LE(std::abs(last(moved) - last(stayed)), kBound * last(stayed));
    const Contents there = contents_at(moved, step);
    EXPECT_EQ(there.experts.size(), 5U);
    EXPECT_EQ(there.digests.size(), contents_at(stayed, step).digests.size());
    EXPECT_EQ(there.optimizer_steps, contents_at(stayed, step).optimizer_steps);
    run = moved;
    from = to;
  }

  const auto scores = [&](int ranks) {
    const ProgramResult result =
        moecollab_on(ranks, {"eval", "--checkpoint", run, "--data", data, "--json", "--train.seq_len=32",
                             "--train.batch_size=6", "--train.eval_sequences=5", "--train.threads=1"});
    expect_done(result);
    return nlohmann::json::parse(result.output)["models"][0]["domains"];
  };
  const auto one = scores(1);
  EXPECT_EQ(one.size(), 2U);
  for (const int ranks : {2, 3}) {
    const auto many = scores(ranks);
    for (const char* domain : {"weather", "kitchen"}) {
      const double a = one[domain]["bits_per_byte"], b = many[domain]["bits_per_byte"];
      EXPECT_LE(std::abs(a - b), kBound * a) << domain << " on " << ranks;
      EXPECT_EQ(one[domain]["targets"], many[domain]["targets"]);
    }
  }
}

}  // namespace
}  // namespace moecollab::app
