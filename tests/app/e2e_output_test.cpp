// What a run shows, on a terminal and elsewhere, and what a dry run promises.
#include "e2e_run.hpp"

namespace moecollab::app {
namespace {

using Output = EndToEnd;

std::int64_t number_after(const std::string& text, const std::string& part) {
  const std::size_t at = text.find(part);
  EXPECT_NE(at, std::string::npos) << text << "lacks " << part;
  return at == std::string::npos ? -1 : std::stoll(text.substr(at + part.size()));
}
// N of "name   1.2 MiB (N bytes)".
std::int64_t bytes_of(const std::string& text, const std::string& name) {
  const std::size_t at = text.find("\n# " + name + " ");
  EXPECT_NE(at, std::string::npos) << text << "lacks " << name;
  return at == std::string::npos ? -1 : number_after(text.substr(at), " MiB (");
}

TEST_F(Output, ABarIsDrawnOnATerminalOnly) {
  const std::string data = make_data("data.h5", {"weather"});
  const auto words = [&](const std::string& run) { return train(folder_ / run, data, {"--train.steps=3"}); };
  for (const int ranks : {1, 2}) {
    const ProgramResult plain = moecollab_on(ranks, words("plain-" + std::to_string(ranks)));
    expect_done(plain);
    EXPECT_EQ((plain.output + plain.errors).find_first_of("\r\033"), std::string::npos) << plain.output;
    EXPECT_NE(plain.output.find("loss"), std::string::npos) << plain.output;
    const Words all = words("bar-" + std::to_string(ranks));
    const ProgramResult bar = on_terminal(ranks == 1 ? alone(all) : on_ranks(ranks, all));
    EXPECT_EQ(bar.exit_code, 0) << bar.output;
    EXPECT_NE(bar.output.find("\r\033[K"), std::string::npos) << bar.output;
  }
}

TEST_F(Output, ADryRunTellsWhatTheRunThenDoes) {
  const std::string data = make_data("data.h5", {"weather", "kitchen"}), run = folder_ / "run";
  const auto words = [&](int steps) {
    return train(run, data, {"--train.steps=" + std::to_string(steps), "--expert.num_experts=5"});
  };
  const std::string before = listing(folder_.path());
  const ProgramResult fresh = moecollab_on(2, joined(words(2), {"--dry-run"}));
  expect_done(fresh);
  EXPECT_EQ(listing(folder_.path()), before);
  EXPECT_FALSE(std::filesystem::exists(run));
  // 4 exchanges, 2 layers, 6 x 32 tokens, 2 picks, width 32, 4 bytes.
  EXPECT_EQ(bytes_of(fresh.output, "all-to-all"), 4 * 2 * 6 * 32 * 2 * 32 * 4);
  EXPECT_EQ(bytes_of(moecollab(joined(words(2), {"--dry-run"})).output, "checkpoint"),
            bytes_of(fresh.output, "checkpoint"));

  const ProgramResult real = moecollab_on(2, words(2));
  expect_done(real);
  const store::Manifest manifest = store::read_manifest(store::checkpoint_directory(run, 2));
  std::int64_t parameters = 0, tensor_bytes = 0;
  for (const store::TensorEntry& tensor : manifest.tensors) {
    const bool counts = tensor.slot == store::Slot::value && !tensor.name.ends_with("selection_bias");
    parameters += counts ? tensor.shape.numel() : 0;
    tensor_bytes += tensor.size_bytes();
  }
  EXPECT_EQ(number_after(fresh.output, "\n# parameters"), parameters);
  EXPECT_EQ(bytes_of(fresh.output, "checkpoint"), tensor_bytes);
  EXPECT_NE(real.output.find(std::to_string(parameters).substr(0, 2)), std::string::npos);

  const std::string after = listing(folder_.path());
  const ProgramResult resumed = moecollab(joined(words(5), {"--dry-run"}));
  expect_done(resumed);
  EXPECT_EQ(number_after(resumed.output, "\n# parameters"), parameters);
  EXPECT_NE(resumed.output.find("go on from " + store::checkpoint_directory(run, 2)), std::string::npos)
      << resumed.output;
  EXPECT_NE(resumed.output.find(" in 3 steps"), std::string::npos) << resumed.output;
  EXPECT_EQ(listing(folder_.path()), after);
}

TEST_F(Output, ADryRunOfEveryOtherVerbReadsManifestsAndWritesNothing) {
  const std::string data = make_data("data.h5", {"weather"}), anchor = folder_ / "anchor";
  expect_done(moecollab(train(anchor, data, {"--train.steps=1"})));
  const Words expert =
      joined({"expert", "train", "--anchor", anchor, "--data", data, "--expert.name", "new", "--expert.owner",
              "someone", "--expert.domain", "weather", "--out", folder_ / "new", "--train.steps=1"},
             small_training());
  const std::string start = listing(folder_.path());
  const ProgramResult planned = moecollab(joined(expert, {"--dry-run"}));
  expect_done(planned);
  EXPECT_EQ(listing(folder_.path()), start);
  expect_done(moecollab(expert));
  const store::Manifest manifest =
      store::read_manifest(store::latest_checkpoint(folder_ / "new/run").directory);
  std::int64_t tensor_bytes = 0;
  std::string shard;
  for (const store::TensorEntry& tensor : manifest.tensors) tensor_bytes += tensor.size_bytes();
  for (const auto& entry : std::filesystem::directory_iterator(folder_ / "new"))
    if (entry.path().extension() == ".h5") shard = entry.path();
  EXPECT_EQ(bytes_of(planned.output, "checkpoint"), tensor_bytes);

  const std::string all = listing(folder_.path());
  const auto parameters = [&](const Words& words) {
    const ProgramResult result = moecollab(joined(words, {"--dry-run"}));
    expect_done(result);
    EXPECT_EQ(listing(folder_.path()), all);
    return number_after(result.output, "\n# parameters");
  };
  const std::int64_t with = number_after(planned.output, "\n# parameters");
  const std::int64_t without = parameters({"eval", "--checkpoint", "a=" + anchor, "--data", data});
  EXPECT_LT(without, with);
  EXPECT_EQ(parameters({"generate", "--checkpoint", anchor}), without);
  EXPECT_LT(parameters({"generate", "--checkpoint", anchor, "--without", "public-0"}), without);
  EXPECT_EQ(parameters({"assemble", "--anchor", anchor, "--shards", shard, "--out", folder_ / "joined"}),
            with);
  EXPECT_EQ(parameters(expert), with);
  EXPECT_EQ(parameters(joined({"train", "--run", folder_ / "gate", "--init", anchor, "--data", data,
                               "--train.trainable=router"},
                              small_training())),
            without);
  expect_done(moecollab({"selftest", "--dry-run"}));
  expect_failure(moecollab({"eval", "--checkpoint", folder_ / "nothing", "--data", data, "--dry-run"}), 65,
                 {folder_ / "nothing"});
}

}  // namespace
}  // namespace moecollab::app
