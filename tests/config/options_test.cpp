#include "moecollab/config/options.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "config/table.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::config {
namespace {

std::string message_of(Verb verb, const Texts& args) {
  try {
    parse(verb, args);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "accepted";
}

void expect_parts(const std::string& message, const Texts& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks " << part;
}

const Texts kTrainArgs{"--run.dir", "r", "--data.path", "d.h5"};

Texts train_args(const Texts& more) {
  Texts args = kTrainArgs;
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

class IniFile {
 public:
  explicit IniFile(const std::string& text)
      : path_(std::filesystem::temp_directory_path() /
              ("moecollab_options_" + std::to_string(::testing::UnitTest::GetInstance()->random_seed()) +
               "_" + ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".ini")) {
    std::ofstream(path_) << text;
  }
  ~IniFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

// A value other than the default for every option; a new option must get one here.
const std::map<std::string, Texts> kSamples{
    {"device", {"cpu"}},
    {"anchor", {"a dir/with # and ; signs"}},
    {"shards", {"one.h5", " two .h5", "\"three\".h5"}},
    {"out", {"back\\slash"}},
    {"checkpoint", {"\"quoted\"", "b=two"}},
    {"without", {"law", "3f2a"}},
    {"json", {"true"}},
    {"prompt", {" two\nlines\tand a tab "}},
    {"tokens", {"9223372036854775807"}},
    {"temperature", {"0.30000000000000004"}},
    {"top-p", {"1"}},
    {"seed", {"18446744073709551615"}},
    {"run.dir", {"runs/x"}},
    {"run.init", {"runs/y"}},
    {"data.path", {"d.h5"}},
    {"data.domain_weights", {"law=0.1,a=b=3,code=1e-20"}},
    {"model.vocab_size", {"259"}},
    {"model.hidden_size", {"96"}},
    {"model.num_hidden_layers", {"3"}},
    {"model.num_attention_heads", {"6"}},
    {"model.num_key_value_heads", {"2"}},
    {"model.head_dim", {"16"}},
    {"model.max_position_embeddings", {"512"}},
    {"model.rms_norm_eps", {"1.0000000000000002e-06"}},
    {"model.rope_theta", {"500000.1"}},
    {"model.initializer_range", {"5e-324"}},
    {"model.tie_word_embeddings", {"true"}},
    {"model.use_qk_norm", {"true"}},
    {"model.causal", {"false"}},
    {"model.dtype", {"bf16"}},
    {"model.head", {"classifier"}},
    {"model.num_labels", {"5"}},
    {"model.intermediate_size", {"384"}},
    {"model.decoder_sparse_step", {"2"}},
    {"model.shared_expert_intermediate_size", {"64"}},
    {"model.num_experts_per_tok", {"3"}},
    {"model.scoring", {"sigmoid"}},
    {"model.norm_topk_prob", {"false"}},
    {"model.routed_scaling_factor", {"2.5"}},
    {"model.routing", {"fixed"}},
    {"model.capacity_factor", {"1.25"}},
    {"model.max_rows", {"4096"}},
    {"expert.num_experts", {"7"}},
    {"expert.kind", {"adapter"}},
    {"expert.moe_intermediate_size", {"48"}},
    {"expert.name", {"law-1"}},
    {"expert.owner", {"Ada"}},
    {"expert.domain", {"law"}},
    {"train.steps", {"1000"}},
    {"train.batch_size", {"24"}},
    {"train.micro_batches", {"3"}},
    {"train.seq_len", {"128"}},
    {"train.seed", {"12345678901234567890"}},
    {"train.trainable", {"router"}},
    {"train.expert_parallel", {"2"}},
    {"train.eval_every", {"50"}},
    {"train.eval_sequences", {"8"}},
    {"train.checkpoint_every", {"100"}},
    {"train.keep_checkpoints", {"5"}},
    {"train.log_every_s", {"0.5"}},
    {"train.threads", {"2"}},
    {"train.overlap_chunks", {"4"}},
    {"train.selection_bias_rate", {"0.001"}},
    {"balance.balance", {"0.01"}},
    {"balance.z_loss", {"0.0001"}},
    {"balance.token_entropy", {"-0.25"}},
    {"balance.batch_entropy", {"0.25"}},
    {"optimizer.lr", {"0.00030000000000000003"}},
    {"optimizer.min_lr_ratio", {"0"}},
    {"optimizer.warmup_steps", {"7"}},
    {"optimizer.schedule", {"wsd"}},
    {"optimizer.decay_steps", {"33"}},
    {"optimizer.beta1", {"0.85"}},
    {"optimizer.beta2", {"0.999"}},
    {"optimizer.eps", {"1e-12"}},
    {"optimizer.weight_decay", {"0"}},
    {"optimizer.clip_norm", {"0.1"}},
};

Settings sample_settings() {
  Settings settings;
  for (const Option& option : option_table()) EXPECT_TRUE(option.set(settings, kSamples.at(option.name)));
  return settings;
}

TEST(Options, EverySampleDiffersFromTheDefaultAndIsReadBackExactly) {
  const Settings defaults;
  const Settings sample = sample_settings();
  for (const Option& option : option_table()) {
    ASSERT_TRUE(kSamples.contains(option.name)) << option.name;
    EXPECT_NE(option.get(sample), option.get(defaults)) << option.name;
    EXPECT_EQ(option.get(sample), kSamples.at(option.name)) << option.name;
  }
  EXPECT_EQ(kSamples.size(), option_table().size());
}

// Two options bound to one field would pass the test above when their samples agree.
TEST(Options, EachOptionChangesItselfOnly) {
  for (const Option& changed : option_table()) {
    Settings settings;
    ASSERT_TRUE(changed.set(settings, kSamples.at(changed.name)));
    for (const Option& other : option_table()) {
      if (other.name == changed.name) continue;
      EXPECT_EQ(other.get(settings), other.get(Settings{})) << changed.name << " moved " << other.name;
    }
  }
}

TEST(Options, AWrittenIniReadsBackToTheSameConfigForEveryVerb) {
  const Settings sample = sample_settings();
  for (const VerbInfo& verb : verbs()) {
    const IniFile file(write_ini(sample, verb.verb));
    const Texts args{"--config", file.path()};
    const CommandLine line = parse(verb.verb, args);
    std::size_t written = 0;
    for (const Option& option : option_table()) {
      const bool own = option.belongs_to(verb.verb);
      EXPECT_EQ(option.get(line.settings), option.get(own ? sample : Settings{})) << verb.name << option.name;
      EXPECT_EQ(line.settings.is_given(option.name), own) << option.name;
      written += own ? 1 : 0;
    }
    EXPECT_EQ(line.settings.given.size(), written);
  }
}

TEST(Options, TheCommandLineSaysTheSameAsTheIniFile) {
  for (const VerbInfo& verb : verbs()) {
    Texts args;
    for (const Option& option : option_table()) {
      if (!option.belongs_to(verb.verb)) continue;
      if (option.takes == Takes::one_value) {
        args.push_back("--" + option.name + "=" + kSamples.at(option.name).at(0));
        continue;
      }
      args.push_back("--" + option.name);
      if (option.takes == Takes::many_values)
        for (const std::string& value : kSamples.at(option.name)) args.push_back(value);
    }
    const CommandLine line = parse(verb.verb, args);
    for (const Option& option : option_table())
      if (option.belongs_to(verb.verb)) {
        EXPECT_EQ(option.get(line.settings), kSamples.at(option.name));
      }
  }
}

TEST(Options, TheCommentedDefaultsReadBackAsDefaults) {
  for (const VerbInfo& verb : verbs()) {
    const IniFile file(write_commented_ini(verb.verb));
    Texts args{"--config", file.path()};
    for (const Option& option : option_table())
      if (option.is_required_by(verb.verb)) args.insert(args.end(), {"--" + option.name, "x"});
    Settings settings = parse(verb.verb, args).settings;
    if (verb.verb == Verb::expert_train) {  // keeps its run beside what it writes
      EXPECT_EQ(settings.run.dir, "x/run");
      settings.run.dir.clear();
    }
    for (const Option& option : option_table()) {
      if (!option.is_required_by(verb.verb)) {
        EXPECT_EQ(option.get(settings), option.get(Settings{})) << option.name;
      }
    }
  }
}

TEST(Options, NamesAndDefaultsAreFrozen) {
  std::string now;
  for (const OptionInfo& option : list_options()) {
    std::string verb_list;
    for (const std::string& verb : option.verbs) verb_list += (verb_list.empty() ? "" : ", ") + verb;
    now += option.name + " = " + option.default_text + "  [" + verb_list + "]\n";
  }
  const std::filesystem::path golden = std::filesystem::path(__FILE__).parent_path() / "options.golden.txt";
  std::stringstream frozen;
  frozen << std::ifstream(golden).rdbuf();
  EXPECT_EQ(now, frozen.str()) << "options changed; when that is meant, put this text into " << golden;
}

TEST(Options, TheCommandLineWinsOverTheFile) {
  const IniFile file("[optimizer]\nlr = 0.5  # peak\n[train]\nsteps = 7\n");
  const CommandLine line =
      parse(Verb::train, train_args({"--config", file.path(), "--optimizer.lr", "0.25"}));
  EXPECT_EQ(line.settings.train.optimizer.lr, 0.25);
  EXPECT_EQ(line.settings.train.steps, 7);
}

TEST(Options, NegativeNumbersAndAliasesAreRead) {
  const Texts args{"--run", "r",      "--data=d.h5", "--balance.token_entropy",
                   "-0.1",  "--init", "c",           "--expert.width=9"};
  const Settings s = parse(Verb::train, args).settings;
  EXPECT_EQ(s.train.balance.token_entropy, -0.1);
  EXPECT_EQ(s.run.dir, "r");
  EXPECT_EQ(s.data.path, "d.h5");
  EXPECT_EQ(s.run.init, "c");
  EXPECT_EQ(s.expert.moe_intermediate_size, 9);
}

TEST(Options, UnknownNamesGetTheNearestOne) {
  expect_parts(message_of(Verb::train, train_args({"--model.hiden_size", "8"})),
               {"--model.hiden_size", "did you mean --model.hidden_size?"});
  expect_parts(message_of(Verb::train, train_args({"--hidden_size=8"})),
               {"did you mean --model.hidden_size?"});
  expect_parts(message_of(Verb::train, train_args({"--train.lr", "8"})), {"did you mean --optimizer.lr?"});
  expect_parts(message_of(Verb::train, train_args({"--model.hidden"})),
               {"there is no option --model.hidden"});
  expect_parts(message_of(Verb::train, train_args({"--qqqqqqqq"})), {"`moecollab train --help` lists all"});
  const IniFile file("\n[model]\nhidden_sizes = 8\n");
  expect_parts(message_of(Verb::train, train_args({"--config", file.path()})),
               {file.path() + ":3:", "model.hidden_sizes", "did you mean model.hidden_size?"});
}

TEST(Options, BadValuesNameKeyValueAndWhatIsAllowed) {
  const std::vector<std::pair<Texts, Texts>> cases{
      {{"--train.steps", "many"}, {"--train.steps", "'many'", "an integer"}},
      {{"--train.steps", "1.5"}, {"'1.5'", "an integer"}},
      {{"--train.steps", "99999999999999999999"}, {"'99999999999999999999'", "an integer"}},
      {{"--train.seed", "-1"}, {"--train.seed", "at least 0"}},
      {{"--optimizer.lr", "nan"}, {"--optimizer.lr", "'nan'", "a finite number"}},
      {{"--optimizer.lr", "1e-3x"}, {"'1e-3x'"}},
      {{"--optimizer.lr="}, {"--optimizer.lr"}},
      {{"--model.head", "lmm"}, {"--model.head", "'lmm'", "lm, classifier"}},
      {{"--model.causal", "yes"}, {"'yes'", "true, false"}},
      {{"--device", "gpu"}, {"--device", "auto, cpu, cuda"}},
      {{"--data.domain_weights", "law"}, {"'law'", "NAME=WEIGHT"}},
      {{"--data.domain_weights", "law=1,law=2"}, {"each name once"}},
      {{"--data.domain_weights", "law=-1"}, {"at least 0"}},
      {{"--data.domain_weights", "law=1,"}, {"NAME=WEIGHT"}},
  };
  for (const auto& [args, parts] : cases) expect_parts(message_of(Verb::train, train_args(args)), parts);
  const Texts generate{"--checkpoint", "c", "--top-p", "1.5"};
  expect_parts(message_of(Verb::generate, generate), {"--top-p", "[0, 1]"});
  const IniFile file("[optimizer]\n\nlr = fast\n");
  expect_parts(message_of(Verb::train, train_args({"--config", file.path()})),
               {file.path() + ":3: optimizer.lr = 'fast'", "a finite number"});
}

TEST(Options, MistakesInUseAreNamed) {
  expect_parts(message_of(Verb::train, {}), {"`train` needs", "--run.dir DIR", "--data.path FILE"});
  expect_parts(message_of(Verb::assemble, Texts{"--anchor", "a"}), {"--shards", "--out"});
  expect_parts(message_of(Verb::train, train_args({"--train.steps"})), {"--train.steps", "missing"});
  expect_parts(message_of(Verb::train, train_args({"--train.steps", "1", "--train.steps", "2"})),
               {"--train.steps", "twice"});
  expect_parts(message_of(Verb::train, train_args({"loose"})), {"'loose'"});
  expect_parts(message_of(Verb::train, train_args({"--prompt", "x"})),
               {"--prompt is an option of `generate`, not of `train`"});
  expect_parts(message_of(Verb::train, train_args({"--config", "/no/such.ini"})), {"/no/such.ini"});
  const IniFile twice("[train]\nsteps = 1\nsteps = 2\n");
  expect_parts(message_of(Verb::train, train_args({"--config", twice.path()})), {":3: train.steps", ":2"});
}

TEST(Options, BrokenIniLinesNameTheLine) {
  for (const char* line : {"[train", "steps", "= 3", "x = \"open", "x = \"a\" b", "x = \"\\q\""}) {
    const IniFile file(std::string("# fine\n") + line + "\n");
    expect_parts(message_of(Verb::train, train_args({"--config", file.path()})), {file.path() + ":2:"});
  }
}

TEST(Options, AFileMayHoldKeysOfOtherVerbs) {
  const IniFile file("prompt = hello\n[train]\nsteps = 3\n");
  EXPECT_EQ(parse(Verb::train, train_args({"--config", file.path()})).settings.train.steps, 3);
}

TEST(Options, HelpNamesEveryOptionOfTheVerbAndNoOther) {
  for (const VerbInfo& verb : verbs()) {
    const std::string text = help(verb.verb);
    for (const Option& option : option_table())
      EXPECT_EQ(text.find("--" + option.name + " ") != std::string::npos ||
                    text.find("--" + option.name + "\n") != std::string::npos,
                option.belongs_to(verb.verb))
          << verb.name << " " << option.name;
  }
  EXPECT_NE(help(Verb::train).find("(default: 0.001)"), std::string::npos);
}

TEST(Options, AskingForHelpNeedsNothingElse) {
  EXPECT_EQ(parse(Verb::train, Texts{"-h"}).ask, Ask::help);
  EXPECT_EQ(parse(Verb::train, Texts{"--bogus", "--help"}).ask, Ask::help);
  EXPECT_EQ(parse(Verb::train, Texts{"--help-config"}).ask, Ask::help_config);
  EXPECT_EQ(parse(Verb::train, train_args({"--dry-run"})).ask, Ask::dry_run);
  EXPECT_EQ(parse(Verb::train, train_args({})).ask, Ask::run);
}

TEST(DidYouMean, CountsEditsAndGivesUpWhenFar) {
  const Texts words{"train", "eval", "generate"};
  EXPECT_EQ(did_you_mean("trian", words), "train");
  EXPECT_EQ(did_you_mean("evaluate", words), "");
  EXPECT_EQ(did_you_mean("genrate", words), "generate");
  EXPECT_EQ(did_you_mean("zzzzzz", words), "");
}

}  // namespace
}  // namespace moecollab::config
