// The form of a model: dense or with experts, and that of an expert that a run goes on with.
#include "moecollab/collab/contribution.hpp"

#include "e2e_run.hpp"

namespace moecollab::app {
namespace {

using Form = EndToEnd;

TEST_F(Form, ADenseModelTrainsAndIsSaved) {
  const std::string data = make_data("data.h5", {"weather"}), run = folder_ / "run";
  const Words words = train(run, data, {"--train.steps=2", "--model.decoder_sparse_step=0"});
  expect_done(moecollab_on(2, words));
  EXPECT_TRUE(contents_at(run, 2).experts.empty());
  const ProgramResult scored = moecollab({"eval", "--checkpoint", run, "--data", data, "--json"});
  expect_done(scored);
  EXPECT_EQ(nlohmann::json::parse(scored.output)["models"][0]["utilisation"], 0.0);
  expect_failure(moecollab(joined({"expert", "train", "--anchor", run, "--data", data, "--expert.name=x",
                                   "--expert.owner=y", "--expert.domain=weather", "--out", folder_ / "out"},
                                  small_training())),
                 64, {"dense"});
}

TEST_F(Form, AnExpertGoesOnInItsFormAndUnderTheNameThatIsGiven) {
  const std::string data = make_data("data.h5", {"weather"}), out = folder_ / "out";
  expect_done(moecollab(train(folder_ / "anchor", data, {"--train.steps=2"})));
  const auto words = [&](const Words& more) {
    return joined(joined({"expert", "train", "--anchor", folder_ / "anchor", "--data", data,
                          "--expert.owner=me", "--expert.domain=weather", "--out", out, "--train.steps=3"},
                         small_training()),
                  more);
  };
  const Words first{"--expert.name=one", "--expert.width=16"};
  // What the dry run resolves is what the run does.
  const ProgramResult plan = moecollab(words({"--expert.name=one", "--dry-run"}));
  EXPECT_NE(plan.output.find("moe_intermediate_size = 32\n"), std::string::npos) << plan.output;
  expect_done(moecollab(words(first)));
  expect_failure(moecollab(words({"--expert.name=one", "--expert.width=32"})), 64, {"width 16", "--out"});
  expect_failure(moecollab(words({"--expert.name=one", "--expert.kind=adapter"})), 64, {"swiglu", "--out"});
  expect_failure(moecollab(words({"--expert.name=public-0"})), 64, {"public-0"});
  expect_done(moecollab(words({"--expert.name=two"})));
  // What was done is not written again; a longer training takes the place of its own earlier shard.
  const std::string metrics = test::slurp(out + "/run/metrics.jsonl");
  expect_done(moecollab(words({"--expert.name=two"})));
  EXPECT_EQ(test::slurp(out + "/run/metrics.jsonl"), metrics);
  Words longer = words({"--expert.name=two"});
  std::replace(longer.begin(), longer.end(), std::string("--train.steps=3"), std::string("--train.steps=4"));
  expect_done(moecollab(longer));
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(out))
    if (entry.path().extension() == ".h5")
      names.push_back(collab::read_contribution_meta(entry.path()).expert.name);
  EXPECT_EQ(names, std::vector<std::string>{"two"});
}

}  // namespace
}  // namespace moecollab::app
