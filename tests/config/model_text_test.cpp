// The model as text in a checkpoint, and what a command may change about a checkpoint's model.
#include <gtest/gtest.h>

#include "config/table.hpp"
#include "moecollab/config/settings.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::config {
namespace {

TEST(ModelText, RoundTripsEveryField) {
  Settings s;
  for (const Option& option : option_table()) {
    if (option.section() != "model") continue;
    // Any value that is not the default: one more, or the other word.
    const std::string now = option.get(s).at(0);
    const std::size_t bar = option.metavar.find('|');
    const std::string first = option.metavar.substr(0, bar),
                      last = option.metavar.substr(option.metavar.rfind('|') + 1);
    const std::string other = bar == std::string::npos ? "3" : (now == first ? last : first);
    ASSERT_TRUE(option.set(s, {other})) << option.name;
    ASSERT_NE(option.get(s).at(0), now) << option.name;
  }
  s.model.rms_norm_eps = 0.1 + 0.2;
  Settings back;
  back.model = model_from_text(model_to_text(s.model));
  for (const Option& option : option_table()) {
    if (option.section() == "model") {
      EXPECT_EQ(option.get(back), option.get(s)) << option.name;
    }
  }
  EXPECT_EQ(back.model.rms_norm_eps, 0.1 + 0.2);
}

TEST(ModelText, EveryDamageIsRefused) {
  const std::string good = model_to_text({});
  std::size_t lines = 0;
  for (std::size_t begin = 0; begin < good.size(); ++lines) {
    const std::size_t end = good.find('\n', begin) + 1;
    const std::string line = good.substr(begin, end - begin);
    EXPECT_THROW(model_from_text(good.substr(0, begin) + good.substr(end)), CheckpointError)
        << "without " << line;
    EXPECT_THROW(model_from_text(good + line), CheckpointError) << "twice " << line;
    EXPECT_THROW(model_from_text(good.substr(0, end - 1) + "x\n" + good.substr(end)), CheckpointError)
        << line;
    begin = end;
  }
  EXPECT_EQ(lines, 26U);
  EXPECT_THROW(model_from_text(good + "new_thing = 3\n"), CheckpointError);
  EXPECT_THROW(model_from_text(good + "no equals sign\n"), CheckpointError);
}

TEST(ModelFor, TakesTheCheckpointsModelAndWhatMayChange) {
  nn::ModelConfig stored;
  stored.hidden_size = 96;
  stored.num_experts_per_tok = 2;
  Settings s;
  EXPECT_EQ(model_for(s, stored).hidden_size, 96);  // a default is no wish
  s.model.num_experts_per_tok = 3;
  s.model.hidden_size = 96;
  s.given = {"model.num_experts_per_tok", "model.hidden_size"};
  EXPECT_EQ(model_for(s, stored).num_experts_per_tok, 3);
  EXPECT_EQ(model_for(s, stored).hidden_size, 96);
  s.model.hidden_size = 128;
  EXPECT_THROW(model_for(s, stored), UsageError);
}

TEST(ModelFor, WhatComesFromTheDataFitsEveryCheckpoint) {
  nn::ModelConfig stored;
  stored.head = nn::Head::classifier;
  stored.vocab_size = 259;
  stored.num_labels = 5;
  Settings s;
  s.given = {"model.vocab_size", "model.num_labels"};
  EXPECT_EQ(model_for(s, stored).vocab_size, 259);
  EXPECT_EQ(model_for(s, stored).num_labels, 5);
  s.model.num_labels = 4;
  EXPECT_THROW(model_for(s, stored), UsageError);
}

}  // namespace
}  // namespace moecollab::config
