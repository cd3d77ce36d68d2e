#include "moecollab/data/token_file.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>

#include "data/token_fixture.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/data/dataset.hpp"

namespace moecollab::data {
namespace {

using test::TemporaryDirectory;

std::int64_t entries(const std::string& folder) {
  return std::distance(std::filesystem::directory_iterator(folder), std::filesystem::directory_iterator());
}

std::vector<std::string> texts(const Dataset& dataset, Split split, std::int32_t domain) {
  std::vector<std::string> found;
  const Range documents = dataset.domain_documents(split, domain);
  for (std::int64_t i = documents.begin; i < documents.end; ++i) {
    const Range range = dataset.document_tokens(split, i);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(range.size()));
    dataset.read_tokens(split, range.begin, ids);
    EXPECT_EQ(ids.back(), dataset.tokenizer().eos_id());
    found.push_back(dataset.tokenizer().decode(ids));
  }
  return found;
}

TEST(TokenFile, GivesBackEveryDocumentOfEveryDomain) {
  const TemporaryDirectory folder;
  std::vector<TestDocument> documents = {
      {"b", "one", ""}, {"a", "two\n\n", ""}, {"b", "three", ""}, {"a", "", ""}};
  write_token_file(folder / "t.h5", documents);
  const Dataset dataset = Dataset::open(folder / "t.h5");
  ASSERT_EQ(dataset.domains().size(), 2u);
  EXPECT_EQ(dataset.domains()[0], "b");
  EXPECT_EQ(texts(dataset, Split::train, 0), (std::vector<std::string>{"one", "three"}));
  EXPECT_EQ(texts(dataset, Split::train, 1), (std::vector<std::string>{"two\n\n", ""}));
  EXPECT_EQ(dataset.num_documents(Split::validation), 0);
  EXPECT_EQ(dataset.num_tokens(Split::train), 3 + 5 + 5 + 0 + 4);
  EXPECT_EQ(entries(folder.path()), 1) << "part files are left";
}

TEST(TokenFile, IsTheSameBitsEachTime) {
  const TemporaryDirectory folder;
  auto documents = numbered_documents("a", 500);
  write_token_file(folder / "1.h5", documents, 0.2);
  write_token_file(folder / "2.h5", documents, 0.2);
  EXPECT_EQ(test::slurp(folder / "1.h5"), test::slurp(folder / "2.h5"));
}

TEST(TokenFile, SplitsByTextAlone) {
  const TemporaryDirectory folder;
  auto documents = numbered_documents("a", 1000);
  write_token_file(folder / "forward.h5", documents, 0.1);
  std::ranges::reverse(documents);
  write_token_file(folder / "backward.h5", documents, 0.1);
  write_token_file(folder / "seed.h5", documents, 0.1, 2);
  const auto validation = [&](const char* name) {
    auto found = texts(Dataset::open(folder / name), Split::validation, 0);
    std::ranges::sort(found);
    return found;
  };
  const auto forward = validation("forward.h5");
  EXPECT_EQ(forward, validation("backward.h5"));
  EXPECT_NE(forward, validation("seed.h5"));
  // 1000 draws of probability 0.1: mean 100, standard deviation 9.5; five of them either way.
  EXPECT_NEAR(static_cast<double>(forward.size()), 100.0, 5 * 9.5);
}

TEST(TokenFile, SortsLabelsUnlessTheyAreGiven) {
  const TemporaryDirectory folder;
  const std::vector<TestDocument> documents = {{"a", "1", "sour"}, {"a", "2", "bitter"}, {"a", "3", "sour"}};
  write_token_file(folder / "sorted.h5", documents);
  const Dataset sorted = Dataset::open(folder / "sorted.h5");
  ASSERT_EQ(sorted.labels().size(), 2u);
  EXPECT_EQ(sorted.labels()[0], "bitter");
  EXPECT_EQ(sorted.document_label(Split::train, 0), 1);
  EXPECT_EQ(sorted.document_label(Split::train, 1), 0);
  write_token_file(folder / "given.h5", documents, 0.0, 1, {"sour", "sweet", "bitter"});
  const Dataset given = Dataset::open(folder / "given.h5");
  ASSERT_EQ(given.labels().size(), 3u);
  EXPECT_EQ(given.document_label(Split::train, 0), 0);
  EXPECT_EQ(given.document_label(Split::train, 1), 2);
  EXPECT_THROW(write_token_file(folder / "bad.h5", documents, 0.0, 1, {"sour"}), DataError);
  EXPECT_THROW(write_token_file(folder / "mixed.h5", {{"a", "1", "sour"}, {"a", "2", ""}}), DataError);
  EXPECT_EQ(entries(folder.path()), 2) << "a failed file left something";
}

TEST(TokenFile, RefusesWhatCannotBe) {
  const TemporaryDirectory folder;
  EXPECT_THROW(write_token_file(folder / "t.h5", {}), DataError);
  EXPECT_THROW(write_token_file(folder / "t.h5", {{"", "text", ""}}), DataError);
  for (const double fraction : {-0.1, 1.0, std::nan("")})
    EXPECT_THROW(write_token_file(folder / "t.h5", {{"a", "text", ""}}, fraction), UsageError);
  EXPECT_THROW(write_token_file(folder / "missing/t.h5", {{"a", "text", ""}}), IoError);
  EXPECT_EQ(entries(folder.path()), 0);
}

// The limit on file size stands for a full disk: write() fails half way, in a part file or in the token file.
TEST(TokenFile, AFullDiskLeavesTheOldFileAndNothingElse) {
  const TemporaryDirectory folder;
  write_token_file(folder / "t.h5", {{"a", "the old one", ""}});
  const std::string old = test::slurp(folder / "t.h5");
  std::vector<TestDocument> documents;
  for (int i = 0; i < 64; ++i) documents.push_back({"a", std::to_string(i) + std::string(65536, 'y'), ""});
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  // Parts reach 8 MiB; the token file is larger than them by its offsets and its tokenizer.
  for (const rlim_t limit : {rlim_t{1} << 20, rlim_t{8} << 20}) {
    const rlimit small{limit, before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    EXPECT_THROW(write_token_file(folder / "t.h5", documents), IoError) << limit;
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_EQ(test::slurp(folder / "t.h5"), old);
    EXPECT_EQ(entries(folder.path()), 1);
  }
  write_token_file(folder / "t.h5", documents);
  EXPECT_GT(test::slurp(folder / "t.h5").size(), std::size_t{8} << 20);
}

}  // namespace
}  // namespace moecollab::data
