// The recipe for Debian text, with the domains that need no download.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "data_prep/run_program.hpp"

namespace moecollab::prepare {
namespace {

const std::string kRecipe = std::string(MC_RECIPES) + "/debian-text";

TEST(Recipe, ListsNineDomains) {
  const auto result = run_program(kRecipe, {"--list"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(std::ranges::count(result.output, '\n'), 9);
}

TEST(Recipe, MakesTheSameBytesEachTime) {
  const test::TemporaryDirectory folder;
  for (const char* name : {"1", "2"}) {
    const auto result =
        run_program(kRecipe, {"--output", folder / name, "--domains", "python", "--max-bytes", "300000"});
    ASSERT_EQ(result.exit_code, 0) << result.errors;
  }
  const std::string text = test::slurp(folder / "1/python.jsonl");
  EXPECT_EQ(text, test::slurp(folder / "2/python.jsonl"));
  EXPECT_GT(text.size(), 200000u);
  const auto prepared = prepare_program(
      {"-q", "-i", "python=" + (folder / "1/python.jsonl"), "-o", folder / "t.h5", "-t", "bytes"});
  EXPECT_EQ(prepared.exit_code, 0) << prepared.errors;
}

TEST(Recipe, RefusesWhatItDoesNotKnow) {
  const test::TemporaryDirectory folder;
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{},
                                                    {"--output", folder / "x", "--domains", "poetry"},
                                                    {"--output", folder / "x", "--max-bytes", "many"},
                                                    {"--verbose"}}) {
    const auto result = run_program(kRecipe, arguments);
    EXPECT_EQ(result.exit_code, 64) << result.errors;
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "x"));
}

}  // namespace
}  // namespace moecollab::prepare
