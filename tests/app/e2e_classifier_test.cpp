// A classifier from labelled text to its scores.
#include "e2e_run.hpp"

namespace moecollab::app {
namespace {

class Classifier : public EndToEnd {
 protected:
  // One domain, three labels, of which the first has half of the documents.
  std::string make_labelled(const std::string& name) {
    std::ofstream table(folder_ / "notes.tsv");
    for (int i = 0; i < 160; ++i) {
      const std::string label = i % 4 == 0 ? "kitchen" : i % 4 == 1 ? "railway" : "weather";
      const std::string text = sentences(label, i);
      table << label << '\t' << text.substr(0, text.find('.')) << '\n';
    }
    table.close();
    expect_done(prepare({"--input", "notes=" + folder_ / "notes.tsv", "--output", folder_ / name, "--quiet",
                         "--tokenizer=bytes", "--threads", "1", "--validation-fraction", "0.25"}));
    return folder_ / name;
  }
  static Words classify(const Words& more) {
    return joined({"--model.head=classifier", "--model.causal=false", "--model.routing=document"}, more);
  }
};

TEST_F(Classifier, LearnsMoreThanTheMajorityAndCountsItsLabels) {
  const std::string data = make_labelled("notes.h5"), run = folder_ / "run";
  const ProgramResult trained = moecollab_on(2, train(run, data, classify({"--train.steps=40"})));
  expect_done(trained);
  EXPECT_NE(test::slurp(store::latest_checkpoint(run).directory + "/config.ini").find("num_labels = 3\n"),
            std::string::npos);

  const Words scoring{"eval",
                      "--checkpoint",
                      run,
                      "--data",
                      data,
                      "--train.seq_len=32",
                      "--train.eval_sequences=200",
                      "--train.threads=1"};
  const ProgramResult table = moecollab(scoring);
  expect_done(table);
  EXPECT_NE(table.output.find("accuracy % / macro-F1 %"), std::string::npos) << table.output;
  const ProgramResult json = moecollab_on(2, joined(scoring, {"--json"}));
  expect_done(json);
  const auto scores = nlohmann::json::parse(json.output)["models"][0]["domains"]["notes"];
  // Whoever always answers "weather" is right in about half of the cases.
  EXPECT_GT(scores["targets"], 20);
  EXPECT_GT(scores["accuracy"], 0.8) << scores;
  EXPECT_GT(scores["macro_f1"], 0.8) << scores;
}

TEST_F(Classifier, AnotherNumberOfLabelsIsRefused) {
  const std::string data = make_labelled("notes.h5"), plain = make_data("plain.h5", {"weather"});
  expect_failure(moecollab(train(folder_ / "run", data, classify({"--model.num_labels=4"}))), 64,
                 {"model.num_labels = 4", data, "3 labels"});
  expect_failure(moecollab(train(folder_ / "run", plain, classify({}))), 65, {plain, "no labels"});
  expect_done(moecollab(train(folder_ / "run", data, classify({"--train.steps=1"}))));
  expect_failure(moecollab({"eval", "--checkpoint", folder_ / "run", "--data", plain, "--train.seq_len=32"}),
                 65, {plain, "0 labels", "tells 3 apart"});
}

}  // namespace
}  // namespace moecollab::app
