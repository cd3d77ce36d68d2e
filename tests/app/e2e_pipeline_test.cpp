// The whole way of a shared model: anchor, two contributors, assembly, gate, evaluation, text; and what may
// not change on the way.
#include <filesystem>

#include "e2e_run.hpp"

namespace moecollab::app {
namespace {

const store::TensorEntry* any_expert_tensor(const store::Manifest& manifest, const std::string& expert) {
  for (const ExpertSlot& slot : manifest.slots)
    if (slot.name == expert)
      return manifest.tensors_of(BlockKind::expert, slot.uuid, store::Slot::value).at(0);
  return nullptr;
}

std::map<std::string, std::string> weights_of(const store::Manifest& manifest, const std::string& expert) {
  std::map<std::string, std::string> digests;
  for (const ExpertSlot& slot : manifest.slots)
    if (slot.name == expert)
      for (const auto* tensor : manifest.tensors_of(BlockKind::expert, slot.uuid, store::Slot::value))
        digests[tensor->name] = to_string(tensor->digest);
  return digests;
}

class Pipeline : public EndToEnd {
 protected:
  Words expert_train(const std::string& name, const std::string& data) const {
    return joined({"expert", "train", "--anchor", folder_ / "anchor", "--data", data, "--expert.name", name,
                   "--expert.owner", "owner-of-" + name, "--expert.domain", name, "--out", folder_ / name,
                   "--train.steps=6"},
                  small_training());
  }
  std::string only_shard(const std::string& name) const {
    std::string found;
    for (const auto& entry : std::filesystem::directory_iterator(folder_ / name))
      if (entry.path().extension() == ".h5") {
        EXPECT_EQ(found, "");
        found = entry.path();
      }
    return found;
  }
  // Exit code of jobs/same-weights.
  int same_weights(const std::string& from, const std::string& to) const {
    const ProgramResult result = Program({std::string(MC_JOBS) + "/same-weights", from, to}).wait();
    EXPECT_EQ(result.errors, "");
    return result.exit_code;
  }
  Words generate(const Words& more) const {
    return joined({"generate", "--checkpoint", folder_ / "gate", "--prompt", "the rain", "--tokens", "24",
                   "--train.threads=1"},
                  more);
  }
};

TEST_F(Pipeline, AnchorContributorsAssemblyGateAndText) {
  const std::string general = make_data("public.h5", {"weather", "kitchen"});
  expect_done(
      moecollab_on(2, train(folder_ / "anchor", general,
                            {"--train.steps=12", "--train.checkpoint_every=6", "--model.dtype=bf16"})));

  Words shards;
  std::map<std::string, std::string> sources;
  for (const std::string name : {"railway", "kitchen"}) {
    const Words words = expert_train(name, make_data(name + ".h5", {name}));
    const ProgramResult result = moecollab_on(name == "railway" ? 1 : 2, words);
    expect_done(result);
    shards.push_back(only_shard(name));
    EXPECT_NE(result.output.find("contribution: " + shards.back()), std::string::npos) << result.output;
    const std::size_t quote = result.output.find("starts as a copy of '");
    ASSERT_NE(quote, std::string::npos);
    sources[name] = result.output.substr(quote + 21, result.output.find('\'', quote + 21) - quote - 21);
  }
  // The same command again has nothing to do, and leaves the same bits under the same name.
  const std::string before = test::slurp(shards[0]);
  expect_done(moecollab(expert_train("railway", folder_ / "railway.h5")));
  EXPECT_EQ(only_shard("railway"), shards[0]);
  EXPECT_EQ(test::slurp(shards[0]), before);

  const std::string assembled = folder_ / "assembled", gate = folder_ / "gate";
  expect_done(moecollab(
      {"assemble", "--anchor", folder_ / "anchor", "--shards", shards[0], shards[1], "--out", assembled}));
  const std::string all = make_data("all.h5", {"weather", "kitchen", "railway"});
  Words gate_words =
      joined({"train", "--run", gate, "--init", assembled, "--data", all, "--train.steps=6",
              "--train.trainable=router", "--balance.token_entropy=0.01", "--balance.batch_entropy=0.02"},
             small_training());
  expect_done(moecollab_on(2, gate_words));

  const store::Manifest joined_model = store::read_manifest(assembled);
  ASSERT_EQ(joined_model.slots.size(), 6U);
  for (const auto& [name, source] : sources) {
    const auto mine = weights_of(joined_model, name), theirs = weights_of(joined_model, source);
    ASSERT_EQ(mine.size(), theirs.size()) << source;
    ASSERT_GT(mine.size(), 0U);
    for (const auto& [tensor, digest] : mine) EXPECT_NE(digest, theirs.at(tensor)) << name << " " << tensor;
  }
  EXPECT_EQ(same_weights(folder_ / "anchor", assembled), 0);
  EXPECT_EQ(same_weights(assembled, gate), 0);
  EXPECT_EQ(same_weights(store::checkpoint_directory(folder_ / "anchor", 6), folder_ / "anchor"), 65);
  const auto trained_gate = contents_at(gate, 6), fresh_gate = contents_of(assembled);
  std::size_t changed = 0;
  for (const auto& [tensor, digest] : fresh_gate.digests) {
    const bool differs = trained_gate.digests.at(tensor) != digest;
    EXPECT_TRUE(!differs || tensor.starts_with("router ")) << tensor;
    changed += differs ? 1 : 0;
  }
  EXPECT_GE(changed, 6U);  // a row of every expert

  const Words scoring{"--data", all, "--train.seq_len=32", "--train.eval_sequences=3", "--train.threads=1"};
  const ProgramResult table = moecollab_on(
      2, joined({"eval", "--checkpoint", "start=" + folder_ / "anchor", assembled, "gate=" + gate}, scoring));
  expect_done(table);
  for (const char* part : {"bits per byte", "start", "assembled", "gate", "weather", "picks in %", "H_tok"})
    EXPECT_NE(table.output.find(part), std::string::npos) << part;
  const ProgramResult without =
      moecollab(joined({"eval", "--checkpoint", gate, "--json", "--without", "railway"}, scoring));
  expect_done(without);
  EXPECT_EQ(nlohmann::json::parse(without.output)["models"][0]["experts"].size(), 5U);

  const ProgramResult text = moecollab(generate({"--seed=5"}));
  expect_done(text);
  EXPECT_EQ(text.output.find("the rain"), 0U) << text.output;
  EXPECT_EQ(moecollab(generate({"--seed=5"})).output, text.output);
  EXPECT_EQ(moecollab_on(2, generate({"--seed=5"})).output, text.output);
  EXPECT_NE(moecollab(generate({"--seed=6"})).output, text.output);
  const ProgramResult by_name = moecollab(generate({"--seed=5", "--without", "kitchen"}));
  expect_done(by_name);
  const std::string uuid = to_string(joined_model.slots.back().uuid);
  ASSERT_EQ(joined_model.slots.back().name, "kitchen");
  EXPECT_EQ(moecollab(generate({"--seed=5", "--without", uuid.substr(0, 8)})).output, by_name.output);
  expect_failure(moecollab(generate({"--without", "kichen"})), 64, {"kichen", "kitchen"});
  expect_failure(
      moecollab_on(2, joined({"generate", "--checkpoint", gate, "--prompt", "the rain"}, {"--tokens", "60"})),
      64, {"longer than the model's 64 positions", "ask for at most 55"});
}

TEST_F(Pipeline, DataInForeignTokensIsRefused) {
  const std::string data = make_data("bytes.h5", {"weather"});
  const std::string foreign = make_data("foreign.h5", {"weather"}, "bpe:384");
  expect_done(moecollab(train(folder_ / "anchor", data, {"--train.steps=1"})));
  for (const Words& words :
       {joined({"train", "--run", folder_ / "new", "--init", folder_ / "anchor", "--data", foreign},
               small_training()),
        expert_train("weather", foreign),
        Words{"eval", "--checkpoint", folder_ / "anchor", "--data", foreign, "--train.seq_len=32"}})
    expect_failure(moecollab(words), 65, {foreign, "tokenizer"});
}

TEST_F(Pipeline, DamageIsNamedAndWhatIsHalfWrittenIsSkipped) {
  const std::string data = make_data("data.h5", {"weather"});
  const std::string run = folder_ / "run";
  const auto words = [&](int steps) {
    return train(run, data, {"--train.steps=" + std::to_string(steps), "--train.checkpoint_every=2"});
  };
  expect_done(moecollab(words(4)));
  const std::string older = store::checkpoint_directory(run, 2), newest = store::checkpoint_directory(run, 4);

  // One bit of an expert's weights.
  const store::Manifest manifest = store::read_manifest(newest);
  const store::TensorEntry& tensor = *any_expert_tensor(manifest, "public-1");
  test::flip_bit(newest + "/" + tensor.file, static_cast<std::size_t>(tensor.offset_bytes + 17), 3);
  const Words scoring{"eval", "--checkpoint", newest, "--data", data, "--train.seq_len=32"};
  expect_failure(moecollab(scoring), 65, {newest, tensor.file, tensor.dataset, "damaged"});

  // A run goes on from an older one that is whole, and does not start anew when none is.
  const std::string other = folder_ / "other";
  copy_run(run, other);
  const Words further = train(other, data, {"--train.steps=5"});
  const ProgramResult older_used = moecollab_on(2, further);
  expect_done(older_used);
  EXPECT_NE(older_used.errors.find("skipping " + store::checkpoint_directory(other, 4)), std::string::npos)
      << older_used.errors;
  EXPECT_NE(older_used.output.find("going on after step 2 of 5"), std::string::npos) << older_used.output;
  for (const std::int64_t step : {2, 5})
    test::flip_bit(store::checkpoint_directory(other, step) + "/router.h5", 2100, 1);
  expect_failure(moecollab_on(2, further), 65, {"none of the checkpoints", other, "damaged"});

  // A save that was cut off: its manifest is missing, or a file is short.
  const std::string cut = store::checkpoint_directory(run, 6), brief = newest;
  copy_run(older, cut);
  std::filesystem::remove(cut + "/manifest.json");
  std::filesystem::resize_file(brief + "/router.h5", 1000);
  const ProgramResult resumed = moecollab(words(3));
  expect_done(resumed);
  for (const std::string& part : {"skipping " + cut, "skipping " + brief, std::string("router.h5")})
    EXPECT_NE(resumed.errors.find(part), std::string::npos) << resumed.errors << part;
  EXPECT_NE(resumed.output.find("going on after step 2 of 3"), std::string::npos) << resumed.output;
}

}  // namespace
}  // namespace moecollab::app
