// The program from outside: what it answers, and how it refuses.
#include <gtest/gtest.h>

#include <fstream>

#include "app/command_line.hpp"
#include "moecollab/core/device.hpp"
#include "moecollab/core/error.hpp"
#include "run_program.hpp"

namespace moecollab::app {
namespace {

using config::Verb;

void expect_refusal(const ProgramResult& result, int code, const Words& parts) {
  EXPECT_EQ(result.exit_code, code) << result.errors;
  EXPECT_EQ(result.output, "");
  EXPECT_EQ(count(result.errors, "moecollab: "), 1U) << result.errors;
  for (const std::string& part : parts)
    EXPECT_NE(result.errors.find(part), std::string::npos) << result.errors << "lacks " << part;
}

TEST(ReadCommand, FindsTheVerbAndItsArguments) {
  const Words expert{"expert", "train", "--anchor", "a"};
  const Command command = read_command(expert);
  EXPECT_EQ(command.verb, Verb::expert_train);
  EXPECT_EQ(command.args, (Words{"--anchor", "a"}));
  EXPECT_EQ(read_command(Words{"help", "expert", "train"}).args, Words{"--help"});
  EXPECT_EQ(read_command(Words{"help"}).wish, Wish::overview);
  EXPECT_EQ(read_command(Words{"--version"}).wish, Wish::version);
  EXPECT_THROW(read_command(Words{}), UsageError);
  EXPECT_THROW(read_command(Words{"expert"}), UsageError);
  EXPECT_THROW(read_command(Words{"help", "nothing"}), UsageError);
}

TEST(Program, HelpNamesEveryVerbAndExitCode) {
  for (const Words& words : {Words{"help"}, Words{"--help"}, Words{"-h"}}) {
    const ProgramResult result = moecollab(words);
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.errors, "");
    for (const char* part :
         {"train", "expert train", "assemble", "eval", "generate", "selftest", "64", "65", "70", "75", "93"})
      EXPECT_NE(result.output.find(std::string("\n  ") + part + " "), std::string::npos) << part;
  }
}

TEST(Program, EveryVerbExplainsItself) {
  for (const config::VerbInfo& info : config::verbs()) {
    Words words;
    const std::string name = info.name;
    const std::size_t blank = name.find(' ');
    words.push_back(name.substr(0, blank));
    if (blank != std::string::npos) words.push_back(name.substr(blank + 1));
    words.push_back("-h");
    const ProgramResult result = moecollab(words);
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.output, config::help(info.verb));
    words.back() = "--help-config";
    EXPECT_EQ(moecollab(words).output, config::write_commented_ini(info.verb));
  }
}

TEST(Program, SaysItsVersion) {
  const ProgramResult result = moecollab({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.output.find("moecollab "), 0U);
  EXPECT_EQ(count(result.output, "."), 2U);
}

TEST(Program, RefusesUnknownVerbsAndOptionsWithTheNearest) {
  expect_refusal(moecollab({}), 64, {"moecollab help"});
  expect_refusal(moecollab({"trian"}), 64, {"'trian'", "did you mean `moecollab train`?"});
  expect_refusal(moecollab({"expert", "trian"}), 64, {"did you mean `moecollab expert train`?"});
  expect_refusal(moecollab({"train", "--run", "r", "--data", "d", "--train.stps", "3"}), 64,
                 {"--train.stps", "did you mean --train.steps?"});
}

TEST(Program, RefusesBrokenRulesBeforeAnyWork) {
  const test::TemporaryDirectory folder;
  std::ofstream(folder / "bad.ini") << "[model]\nhead_dim = 7\n";
  const Words start{"train", "--run", folder / "run", "--data", folder / "none.h5"};
  const auto with = [&start](const Words& more) {
    Words words = start;
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  expect_refusal(moecollab(with({"--config", folder / "bad.ini"})), 64, {"model.head_dim = 7", "6 or 8"});
  expect_refusal(moecollab(with({"--model.num_experts_per_tok", "9"})), 64, {"= 9", "nearest valid: 4"});
  expect_refusal(moecollab(with({"--train.expert_parallel", "2"})), 64, {"ranks, 1", "nearest valid: 1"});
  if (cuda_devices().num == 0)
    expect_refusal(moecollab(with({"--device", "cuda"})), 64,
                   {built_with_cuda() ? "--device cuda: " : "this build has no CUDA", "cpu"});
  expect_refusal(moecollab({"train", "--data", "d"}), 64, {"--run.dir DIR"});
  EXPECT_FALSE(std::filesystem::exists(folder / "run"));
}

TEST(Program, ADryRunPrintsAConfigThatReadsBackAndAPlan) {
  const test::TemporaryDirectory folder;
  const std::string folder_ini = folder / "resolved.ini";
  const ProgramResult result =
      moecollab({"train", "--run", folder / "run", "--data", "d.h5", "--train.steps=77", "--dry-run"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_FALSE(std::filesystem::exists(folder / "run"));
  std::ofstream(folder_ini) << result.output;
  const Words args{"--config", folder_ini};
  const config::Settings settings = config::parse(Verb::train, args).settings;
  EXPECT_EQ(settings.train.steps, 77);
  EXPECT_EQ(result.output.find(config::write_ini(settings, Verb::train) + "\n# "), 0U);
  EXPECT_NE(result.output.find("\n# parameters "), std::string::npos);
  EXPECT_NE(result.output.find("no d.h5 yet"), std::string::npos);
}

TEST(Program, RanksThatRefuseAlikeSpeakOnce) {
  const test::TemporaryDirectory folder;
  const ProgramResult result =
      moecollab_on(3, {"train", "--run", folder / "run", "--data", "d.h5", "--train.expert_parallel", "2"});
  EXPECT_EQ(result.exit_code, 64) << result.errors;
  EXPECT_EQ(count(result.errors, "moecollab: "), 1U) << result.errors;
  EXPECT_NE(result.errors.find("moecollab: rank 0: train.expert_parallel = 2"), std::string::npos);
}

TEST(Program, RanksAnswerOnce) { EXPECT_EQ(moecollab_on(2, {"help"}).output, overview()); }

TEST(Program, SelftestPassesOnAnyNumberOfRanks) {
  for (const int ranks : {1, 3}) {
    const ProgramResult result = moecollab_on(ranks, {"selftest", "--train.threads", "1"});
    EXPECT_EQ(result.exit_code, 0) << result.output << result.errors;
    EXPECT_EQ(count(result.output, "FAIL"), 0U);
  }
}

}  // namespace
}  // namespace moecollab::app
