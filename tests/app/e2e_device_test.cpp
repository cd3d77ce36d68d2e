// A run that changes the device on its way: the same checkpoints, the same numbers. On a machine without a
// GPU the emulated device of test builds stands in.
#include <cmath>

#include "e2e_run.hpp"
#include "moecollab/core/device.hpp"

namespace moecollab::app {
namespace {

class OnDevice : public EndToEnd {
 protected:
  void SetUp() override {
    ::setenv("CUDASIM_DEVICES", "2", 1);  // of builds with an emulated device; others do not look at it
    if (const CudaDevices devices = cuda_devices(); devices.num == 0) GTEST_SKIP() << devices.why_none;
  }
  void TearDown() override { ::unsetenv("CUDASIM_DEVICES"); }

  ProgramResult go_on(const std::string& run, int steps, const char* device, const Words& more = {},
                      int ranks = 1) {
    const ProgramResult result = moecollab_on(
        ranks,
        joined(train(run, data_,
                     {"--train.steps=" + std::to_string(steps), "--optimizer.schedule=constant",
                      "--balance.balance=0.01", "--train.selection_bias_rate=0.001", "--device", device}),
               more));
    expect_done(result);
    return result;
  }
  std::vector<double> losses(const std::string& run) const {
    std::vector<double> values;
    for (const std::string& text : losses_of(run)) values.push_back(std::stod(text));
    return values;
  }
  // Steps carry a difference of rounding on; in this short training by no more than tenfold a step.
  void expect_same_curve(const std::string& run, const std::string& reference, double rounding) const {
    const std::vector<double> have = losses(run), want = losses(reference);
    ASSERT_EQ(have.size(), want.size());
    for (std::size_t i = 0; i < have.size(); ++i)
      EXPECT_LE(std::abs(have[i] - want[i]), rounding * want[i] * std::pow(10.0, static_cast<double>(i)))
          << "step " << i + 1;
  }
  std::string data_ = make_data("data.h5", {"weather"});
};

TEST_F(OnDevice, CpuToCudaToCpu) {
  const std::string cpu = folder_ / "cpu", mixed = folder_ / "mixed";
  go_on(cpu, 6, "cpu");
  go_on(mixed, 2, "cpu");
  const ProgramResult on_device = go_on(mixed, 4, "cuda");
  EXPECT_NE(on_device.output.find("on cuda ("), std::string::npos) << on_device.output;
  const ProgramResult back = go_on(mixed, 6, "cpu");
  EXPECT_NE(back.output.find("going on after step 4"), std::string::npos) << back.output;
  expect_same_curve(mixed, cpu, 40.0 * 64.0 * 0x1p-24);
  EXPECT_EQ(contents_at(mixed, 6).optimizer_steps, contents_at(cpu, 6).optimizer_steps);
}

TEST_F(OnDevice, AStopLeavesNoTrace) {
  const std::string whole = folder_ / "whole", broken = folder_ / "broken";
  go_on(whole, 4, "cuda", {"--model.dtype=bf16"});
  go_on(broken, 2, "auto", {"--model.dtype=bf16"});
  go_on(broken, 4, "cuda", {"--model.dtype=bf16"});
  EXPECT_EQ(losses_of(broken), losses_of(whole));
  EXPECT_EQ(contents_at(broken, 4), contents_at(whole, 4));
}

TEST_F(OnDevice, TwoRanksWithADeviceEach) {
  const std::string one = folder_ / "one", two = folder_ / "two";
  go_on(one, 3, "cpu");
  go_on(two, 3, "cuda", {"--train.overlap_chunks=2"}, 2);
  expect_same_curve(two, one, 40.0 * 64.0 * 0x1p-24);
}

TEST_F(OnDevice, EvaluatesGeneratesAndTrainsAnExpert) {
  const std::string run = folder_ / "anchor";
  go_on(run, 2, "cuda");
  const auto verb = [&](const char* device, const Words& words) {
    const ProgramResult result = moecollab(joined(words, {"--device", device}));
    expect_done(result);
    return result.output;
  };
  const Words eval{"eval", "--checkpoint",       run,      "--data",
                   data_,  "--train.seq_len=32", "--json", "--train.eval_sequences=3"};
  const auto score = [&](const char* device) {
    return nlohmann::json::parse(verb(device, eval))["models"][0]["domains"]["weather"]["bits_per_byte"]
        .get<double>();
  };
  const double on_cpu = score("cpu");
  EXPECT_LE(std::abs(score("cuda") - on_cpu), 40.0 * 64.0 * 0x1p-24 * on_cpu);
  const Words generate{"generate",   "--checkpoint",   run, "--prompt", "the rain",
                       "--tokens=8", "--temperature=0"};
  EXPECT_EQ(verb("cuda", generate), verb("cpu", generate));
  verb("cuda",
       joined({"expert", "train", "--anchor", run, "--data", data_, "--expert.name=rain", "--expert.owner=me",
               "--expert.domain=weather", "--out", folder_ / "shards", "--train.steps=2"},
              small_training()));
  EXPECT_FALSE(std::filesystem::is_empty(folder_ / "shards"));
}

TEST_F(OnDevice, SelftestHoldsItAgainstTheCpu) {
  for (const int ranks : {1, 2}) {
    const ProgramResult result = moecollab_on(ranks, {"selftest", "--train.threads=1", "--device", "cuda"});
    expect_done(result);
    EXPECT_NE(result.output.find("on cuda against one cpu, bf16"), std::string::npos) << result.output;
    EXPECT_EQ(result.output.find("FAIL"), std::string::npos) << result.output;
  }
}

// What CUDA does not compute stays on the CPU with auto, and says so.
TEST_F(OnDevice, F64StaysOnTheCpu) {
  const std::string run = folder_ / "wide";
  go_on(run, 1, "cpu", {"--model.dtype=f64"});
  const ProgramResult result =
      moecollab(train(run, data_,
                      {"--train.steps=2", "--optimizer.schedule=constant", "--balance.balance=0.01",
                       "--train.selection_bias_rate=0.001"}));
  expect_done(result);
  EXPECT_NE(result.output.find("on cpu (model.dtype = f64 is computed on the CPU only"), std::string::npos)
      << result.output;
  const Words eval{
      "eval", "--checkpoint", run, "--data", data_, "--train.seq_len=32", "--train.eval_sequences=3"};
  expect_done(moecollab(eval));
  expect_failure(moecollab(joined(eval, {"--device", "cuda"})), 64, {"--device cuda", "f64", "--device cpu"});
}

TEST_F(OnDevice, MoreRanksThanDevicesAreRefusedOrStayOnTheCpu) {
  const std::string run = folder_ / "run";
  const int ranks = cuda_devices().num + 1;
  const auto start = [&](const char* device) {
    return moecollab_on(ranks, train(run, data_, {"--train.steps=1", "--device", device}));
  };
  expect_failure(start("cuda"), 64, {"each rank needs a device of its own", "--device cpu"});
  const ProgramResult result = start("auto");
  expect_done(result);
  EXPECT_NE(result.output.find("on cpu (not every rank can have a CUDA device of its own)"),
            std::string::npos)
      << result.output;
}

// A machine without a device, in a build that could use one.
TEST_F(EndToEnd, AutoSaysWhyItStaysOnTheCpu) {
  if (!built_with_cuda()) GTEST_SKIP() << "this build has no CUDA";
  if (cuda_devices().num > 0) GTEST_SKIP() << "this machine has a CUDA device";
  const std::string data = make_data("data.h5", {"weather"});
  const ProgramResult result = moecollab(train(folder_ / "run", data, {"--train.steps=1"}));
  expect_done(result);
  EXPECT_NE(result.output.find("on cpu (there is no"), std::string::npos) << result.output;
}

}  // namespace
}  // namespace moecollab::app
