#include "moecollab/data/sampler.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "data/token_fixture.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::data {
namespace {

using test::TemporaryDirectory;

constexpr std::int64_t kSeqLen = 16;

const std::int32_t* values(const Tensor& tensor) { return tensor.view().as<std::int32_t>(); }

std::string bytes_of(const Tensor& tensor) {
  return {static_cast<const char*>(tensor.view().data), static_cast<std::size_t>(tensor.size_bytes())};
}

class SamplerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto documents = numbered_documents("ant", 90);
    for (auto& each : numbered_documents("bee", 40)) documents.push_back(each);
    documents.push_back({"cow", "tiny", ""});
    write_token_file(folder_ / "t.h5", documents, 0.2);
    dataset_ = std::make_unique<Dataset>(Dataset::open(folder_ / "t.h5"));
  }
  SamplerOptions options(std::uint64_t seed = 1) const {
    SamplerOptions made;
    made.seq_len = kSeqLen;
    made.seed = seed;
    return made;
  }
  std::vector<std::int32_t> domain_stream(Split split, std::int32_t domain) const {
    const Range range = dataset_->domain_tokens(split, domain);
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(range.size()));
    dataset_->read_tokens(split, range.begin, tokens);
    return tokens;
  }

  TemporaryDirectory folder_;
  std::unique_ptr<Dataset> dataset_;
};

TEST_F(SamplerTest, RanksTogetherHaveExactlyTheWholeBatch) {
  const Sampler sampler(*dataset_, options());
  for (const std::int64_t rows : {1, 5, 8})
    for (const std::int64_t ranks : {1, 2, 3, 7, 11}) {
      const std::int64_t position = 13 * rows;
      const Batch whole = sampler.batch(position, 0, rows);
      std::string tokens, targets, lengths, segments, domains;
      std::vector<std::int64_t> target_bytes;
      std::int64_t num_tokens = 0;
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        const Batch part = sampler.batch(position, rows * rank / ranks, rows * (rank + 1) / ranks);
        tokens += bytes_of(part.tokens);
        targets += bytes_of(part.targets);
        lengths += bytes_of(part.lengths);
        segments += bytes_of(part.segments);
        domains += bytes_of(part.domains);
        target_bytes.insert(target_bytes.end(), part.target_bytes.begin(), part.target_bytes.end());
        num_tokens += part.num_tokens;
      }
      EXPECT_EQ(tokens, bytes_of(whole.tokens));
      EXPECT_EQ(targets, bytes_of(whole.targets));
      EXPECT_EQ(lengths, bytes_of(whole.lengths));
      EXPECT_EQ(segments, bytes_of(whole.segments));
      EXPECT_EQ(domains, bytes_of(whole.domains));
      EXPECT_EQ(target_bytes, whole.target_bytes);
      EXPECT_EQ(num_tokens, whole.num_tokens);
    }
}

TEST_F(SamplerTest, ABatchDependsOnSeedAndPositionAlone) {
  const Sampler one(*dataset_, options());
  const Sampler two(*dataset_, options());
  const Sampler other(*dataset_, options(2));
  one.batch(0, 0, 3);  // no history
  EXPECT_EQ(bytes_of(one.batch(40, 0, 4).tokens), bytes_of(two.batch(40, 0, 4).tokens));
  EXPECT_EQ(bytes_of(one.batch(42, 0, 2).tokens), bytes_of(two.batch(40, 2, 4).tokens));
  EXPECT_NE(bytes_of(one.batch(40, 0, 4).tokens), bytes_of(other.batch(40, 0, 4).tokens));
}

// Every window of an epoch is a different part of its domain's ring, and together they cover floor(N/S) * S
// tokens.
TEST_F(SamplerTest, AnEpochHasEveryWindowOnce) {
  const Sampler sampler(*dataset_, options());
  std::int64_t expected = 0;
  for (const std::int32_t domain : {0, 1, 2})
    expected += std::max<std::int64_t>(1, dataset_->domain_tokens(Split::train, domain).size() / kSeqLen);
  if (dataset_->domain_tokens(Split::train, 2).size() == 0) --expected;  // "tiny" fell on the other side
  ASSERT_EQ(sampler.samples_per_epoch(), expected);
  std::set<std::int64_t> offsets_of_epochs;
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    std::map<std::int32_t, std::multiset<std::vector<std::int32_t>>> seen;
    const Batch batch = sampler.batch(epoch * expected, 0, expected);
    for (std::int64_t row = 0; row < expected; ++row) {
      const std::int64_t length = values(batch.lengths)[row];
      const auto* tokens = values(batch.tokens) + row * kSeqLen;
      seen[values(batch.domains)[row * kSeqLen]].emplace(tokens, tokens + length);
    }
    for (const std::int32_t domain : {0, 1}) {
      const auto stream = domain_stream(Split::train, domain);
      const auto size = static_cast<std::int64_t>(stream.size());
      const std::int64_t windows = size / kSeqLen;
      // Some shift must explain all of them.
      std::int64_t shifts = 0;
      for (std::int64_t shift = 0; shift < size; ++shift) {
        std::multiset<std::vector<std::int32_t>> wanted;
        for (std::int64_t w = 0; w < windows; ++w) {
          std::vector<std::int32_t> window;
          for (std::int64_t i = 0; i < kSeqLen; ++i)
            window.push_back(stream[static_cast<std::size_t>((shift + w * kSeqLen + i) % size)]);
          wanted.insert(window);
        }
        if (wanted == seen[domain]) {
          ++shifts;
          if (domain == 0) offsets_of_epochs.insert(shift);
        }
      }
      EXPECT_EQ(shifts, 1) << "domain " << domain << " in epoch " << epoch;
    }
  }
  EXPECT_GT(offsets_of_epochs.size(), 1u) << "every epoch is cut at the same places";
}

TEST_F(SamplerTest, TargetsAreTheNextTokensAndSegmentsTheDocuments) {
  const Sampler sampler(*dataset_, options());
  const std::int32_t eos = dataset_->tokenizer().eos_id();
  const std::int64_t rows = sampler.samples_per_epoch();
  const Batch batch = sampler.batch(0, 0, rows);
  std::set<std::int32_t> segments_seen;
  std::int64_t targets_seen = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t length = values(batch.lengths)[row];
    std::int64_t bytes = 0;
    std::set<std::int32_t> of_row;
    for (std::int64_t i = 0; i < kSeqLen; ++i) {
      const std::int64_t at = row * kSeqLen + i;
      if (i >= length) {
        EXPECT_EQ(values(batch.targets)[at], -1);
        EXPECT_EQ(values(batch.segments)[at], -1);
        EXPECT_EQ(values(batch.domains)[at], -1);
        continue;
      }
      ++targets_seen;
      bytes += values(batch.targets)[at] == eos ? 0 : 1;
      of_row.insert(values(batch.segments)[at]);
      if (i + 1 == length) continue;
      EXPECT_EQ(values(batch.targets)[at], values(batch.tokens)[at + 1]);
      EXPECT_EQ(values(batch.domains)[at], values(batch.domains)[at + 1]);
      EXPECT_EQ(values(batch.segments)[at] != values(batch.segments)[at + 1],
                values(batch.tokens)[at] == eos);
    }
    EXPECT_EQ(bytes, batch.target_bytes[static_cast<std::size_t>(row)]);
    for (const std::int32_t segment : of_row)
      EXPECT_TRUE(segments_seen.insert(segment).second) << "row " << row;
  }
  EXPECT_EQ(batch.num_targets, targets_seen);
  EXPECT_EQ(batch.num_tokens, targets_seen);
}

TEST_F(SamplerTest, WeightsDecideHowOftenADomainIsSeen) {
  SamplerOptions weighted = options();
  weighted.domain_weights = {1.0, 3.0, 0.0};
  const Sampler sampler(*dataset_, weighted);
  const std::int64_t rows = 4000;
  const Batch batch = sampler.batch(0, 0, rows);
  std::map<std::int32_t, std::int64_t> seen;
  std::set<std::string> different;
  for (std::int64_t row = 0; row < rows; ++row) {
    ++seen[values(batch.domains)[row * kSeqLen]];
    different.insert({reinterpret_cast<const char*>(values(batch.tokens) + row * kSeqLen),
                      static_cast<std::size_t>(kSeqLen) * 4});
  }
  EXPECT_EQ(seen[2], 0);
  // Binomial: five standard deviations.
  EXPECT_NEAR(static_cast<double>(seen[1]), 3000.0, 5.0 * std::sqrt(4000.0 * 0.75 * 0.25));
  EXPECT_GT(different.size(), 500u);
}

TEST_F(SamplerTest, RefusesWhatCannotWork) {
  SamplerOptions wrong = options();
  wrong.seq_len = 0;
  EXPECT_THROW(Sampler(*dataset_, wrong), UsageError);
  for (const std::vector<double>& weights :
       {std::vector<double>{1.0}, {1.0, -1.0, 0.0}, {0.0, 0.0, 0.0}, {1.0, NAN, 0.0}}) {
    wrong = options();
    wrong.domain_weights = weights;
    EXPECT_THROW(Sampler(*dataset_, wrong), UsageError);
  }
  wrong = options();
  wrong.task = Task::classification;
  EXPECT_THROW(Sampler(*dataset_, wrong), DataError);
  const Sampler sampler(*dataset_, options());
  EXPECT_THROW(sampler.batch(0, 0, std::int64_t{1} << 40), UsageError);
  const TemporaryDirectory folder;
  write_token_file(folder / "t.h5", numbered_documents("a", 3));
  const Dataset no_validation = Dataset::open(folder / "t.h5");
  wrong = options();
  wrong.split = Split::validation;
  EXPECT_THROW(Sampler(no_validation, wrong), DataError);
}

TEST_F(SamplerTest, NoRowsIsABatchToo) {
  const Batch batch = Sampler(*dataset_, options()).batch(7, 2, 2);
  EXPECT_EQ(batch.tokens.shape(), (Shape{0, kSeqLen}));
  EXPECT_EQ(batch.lengths.shape(), Shape{0});
  EXPECT_EQ(batch.num_tokens, 0);
}

TEST(ClassificationSampler, AnEpochHasEveryDocumentOnce) {
  const TemporaryDirectory folder;
  std::vector<TestDocument> documents;
  for (int i = 0; i < 50; ++i)
    documents.push_back({"a", "text " + std::to_string(i), i % 3 == 0 ? "fizz" : "buzz"});
  documents.push_back({"a", std::string(100, 'z'), "fizz"});
  write_token_file(folder / "t.h5", documents);
  const Dataset dataset = Dataset::open(folder / "t.h5");
  SamplerOptions options;
  options.seq_len = kSeqLen;
  options.task = Task::classification;
  const Sampler sampler(dataset, options);
  ASSERT_EQ(sampler.samples_per_epoch(), 51);
  for (const std::int64_t epoch : {0, 1}) {
    const Batch batch = sampler.batch(51 * epoch, 0, 51);
    EXPECT_EQ(batch.targets.shape(), Shape{51});
    EXPECT_EQ(batch.num_targets, 51);
    std::set<std::string> seen;
    for (std::int64_t row = 0; row < 51; ++row) {
      const auto* tokens = values(batch.tokens) + row * kSeqLen;
      const std::int64_t length = values(batch.lengths)[row];
      const std::string text = dataset.tokenizer().decode({tokens, static_cast<std::size_t>(length)});
      EXPECT_TRUE(seen.insert(text).second) << text;
      const bool fizz = text[0] == 'z' || std::stoi(text.substr(5)) % 3 == 0;
      EXPECT_EQ(dataset.labels()[static_cast<std::size_t>(values(batch.targets)[row])],
                fizz ? "fizz" : "buzz");
      EXPECT_TRUE(text[0] != 'z' || length == kSeqLen);
      for (std::int64_t i = 0; i < kSeqLen; ++i)
        EXPECT_EQ(values(batch.segments)[row * kSeqLen + i], i < length ? row * kSeqLen : -1);
    }
  }
}

// Every target of the validation side once, and their bytes are those of the text.
TEST_F(SamplerTest, EvaluationCountsEveryTargetOnce) {
  const EvalSet all(*dataset_, kSeqLen, 1 << 20);
  ASSERT_EQ(all.num_domains(), 3);
  for (const std::int32_t domain : {0, 1}) {
    const auto stream = domain_stream(Split::validation, domain);
    ASSERT_GT(stream.size(), 2u);
    std::vector<std::int32_t> targets;
    std::int64_t bytes = 0;
    for (std::int64_t i = 0; i < all.num_sequences(domain); ++i) {
      const Batch batch = all.batch(domain, i, i + 1);
      const auto* row = values(batch.targets);
      targets.insert(targets.end(), row, row + values(batch.lengths)[0]);
      bytes += batch.target_bytes[0];
    }
    EXPECT_EQ(targets, std::vector<std::int32_t>(stream.begin() + 1, stream.end()));
    std::int64_t text_bytes = -1;  // the first byte of the domain is no target
    for (const std::int32_t id : stream)
      text_bytes += dataset_->tokenizer().token_bytes()[static_cast<std::size_t>(id)];
    EXPECT_EQ(bytes, text_bytes);
  }
  const EvalSet few(*dataset_, kSeqLen, 3);
  EXPECT_EQ(few.num_sequences(0), 3);
  const Batch batch = few.batch(0, 0, 3);
  EXPECT_EQ(batch.tokens.shape(), (Shape{3, kSeqLen}));
  EXPECT_EQ(few.batch(0, 1, 1).tokens.shape(), (Shape{0, kSeqLen}));
  EXPECT_THROW(few.batch(0, 0, 4), InternalError);
}

}  // namespace
}  // namespace moecollab::data
