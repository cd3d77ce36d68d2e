// Evaluation against values known in closed form, and against scores worked out from logits here.
#include "moecollab/train/evaluate.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "moecollab/data/token_file.hpp"
#include "support/temporary_directory.hpp"
#include "support/tiny_model.hpp"

namespace moecollab::test {
namespace {

struct Document {
  const char* domain;
  const char* text;
  const char* label;
};
const std::vector<Document> kDocuments = {
    {"letters", "abcdefgh", "vowel"}, {"letters", "ijklmnopqrstuvw", "none"}, {"letters", "xyz", "vowel"},
    {"letters", "aeiou", "vowel"},    {"digits", "0123456789", "none"},       {"digits", "31415", "odd"},
    {"digits", "271828", "none"}};
constexpr std::int64_t kSeq = 6;

class Evaluate : public testing::Test {
 protected:
  // A tiny model whose vocabulary is bytes.
  static TinySpec spec_of(nn::Head head) {
    TinySpec spec = head == nn::Head::lm ? tiny_spec("lm") : tiny_classifier("classifier");
    spec.config.vocab_size = data::Tokenizer::bytes().vocab_size();
    return spec;
  }

  data::Dataset dataset(bool labelled) const {
    const data::Tokenizer tokenizer = data::Tokenizer::bytes();
    data::TokenFileWriter writer(directory_ / "tokens.h5", tokenizer, {1, 0.0});
    if (labelled) writer.set_labels({"none", "odd", "vowel"});
    for (const Document& document : kDocuments)
      writer.add(writer.domain(document.domain), document.text, tokenizer.encode(document.text),
                 labelled ? writer.label(document.label) : -1);
    writer.finish({});
    return data::Dataset::open(directory_ / "tokens.h5");
  }

  static void zero(TinyModel& tiny, BlockKind kind, const std::string& part) {
    for (const Block& block : tiny.params.blocks())
      for (std::size_t i = 0; block.kind == kind && i < block.params.size(); ++i) {
        const TensorView value = block.part(block.master(), static_cast<std::int32_t>(i));
        if (block.params[i].spec.name.find(part) != std::string::npos)
          std::memset(value.data, 0, static_cast<std::size_t>(value.size_bytes()));
      }
  }

  train::Scores evaluate(TinyModel& tiny, const data::Dataset& dataset, std::int64_t batch_size) const {
    const bool lm = tiny.spec.config.head == nn::Head::lm;
    const data::EvalSet set(dataset, kSeq, 1000, lm ? data::Task::lm : data::Task::classification,
                            data::Split::train);
    return train::evaluate(tiny.step, tiny.transformer(), single_, dataset, set, batch_size);
  }

  // The tokens of a domain: its documents in order, each ended by eos.
  static std::vector<std::int32_t> tokens_of(const std::string& domain) {
    const data::Tokenizer tokenizer = data::Tokenizer::bytes();
    std::vector<std::int32_t> ids;
    for (const Document& document : kDocuments) {
      if (domain != document.domain) continue;
      for (const char c : std::string(document.text)) ids.push_back(static_cast<unsigned char>(c));
      ids.push_back(tokenizer.eos_id());
    }
    return ids;
  }

  TemporaryDirectory directory_;
  const nn::Parallel single_ = nn::Parallel::single();
};

// Equal logits: every target costs ln V. The bytes are those of the text without the first one, which nothing
// predicts; an eos is a target of no bytes.
TEST_F(Evaluate, BitsPerByteOfAModelThatKnowsNothing) {
  TinyModel tiny(spec_of(nn::Head::lm), single_, true);
  zero(tiny, BlockKind::trunk, "lm_head");
  const train::Scores scores = evaluate(tiny, dataset(false), 4);
  ASSERT_EQ(scores.domains.size(), 2u);
  const std::int64_t bytes[2] = {8 + 15 + 3 + 5 - 1, 10 + 5 + 6 - 1};
  const std::int64_t targets[2] = {bytes[0] + 4, bytes[1] + 3};
  for (std::size_t d = 0; d < 2; ++d) {
    const train::DomainScore& score = scores.domains[d];
    EXPECT_EQ(score.domain, d == 0 ? "letters" : "digits");
    EXPECT_EQ(score.targets, targets[d]);
    EXPECT_EQ(score.bytes, bytes[d]);
    EXPECT_EQ(score.sequences, (targets[d] + kSeq - 1) / kSeq);
    EXPECT_NEAR(score.loss, std::log(259.0), 1e-13);
    EXPECT_NEAR(score.bits_per_byte,
                static_cast<double>(targets[d]) * std::log2(259.0) / static_cast<double>(bytes[d]), 1e-12);
  }
}

// A gate of equal logits takes the two lowest experts; one that hates the first two takes the others.
TEST_F(Evaluate, WhereAKnownGateSendsTheTokens) {
  TinyModel tiny(spec_of(nn::Head::lm), single_, true);
  zero(tiny, BlockKind::router, "");
  const data::Dataset data = dataset(false);
  train::Scores scores = evaluate(tiny, data, 4);
  const auto tokens = [&](std::size_t d) { return scores.domains[d].targets; };  // one input for each target
  for (std::size_t d = 0; d < 2; ++d) {
    EXPECT_EQ(scores.domains[d].picks, (std::vector<std::int64_t>{2 * tokens(d), 2 * tokens(d), 0, 0}));
    EXPECT_NEAR(scores.domains[d].token_entropy, 1.0, 1e-14);  // the gate cannot tell them apart
  }
  EXPECT_NEAR(scores.token_entropy, 1.0, 1e-14);
  EXPECT_NEAR(scores.batch_entropy, 0.5, 1e-14);  // ln 2 / ln 4
  EXPECT_NEAR(scores.utilisation, 0.5, 1e-14);

  tiny.set_logit_bias(0, -60.0);
  tiny.set_logit_bias(1, -60.0);
  scores = evaluate(tiny, data, 4);
  for (std::size_t d = 0; d < 2; ++d) {
    EXPECT_EQ(scores.domains[d].picks, (std::vector<std::int64_t>{0, 0, 2 * tokens(d), 2 * tokens(d)}));
    EXPECT_NEAR(scores.domains[d].token_entropy, 0.5, 1e-14);
  }
}

// Every window's loss from its logits, with a softmax written here; windows made from the text here.
TEST_F(Evaluate, BitsPerByteFromLogits) {
  TinyModel tiny(spec_of(nn::Head::lm), single_, true);
  const nn::Transformer model = tiny.transformer();
  const data::Dataset data = dataset(false);
  const train::Scores scores = evaluate(tiny, data, 3);
  const std::int64_t vocab = tiny.spec.config.vocab_size;
  for (const train::DomainScore& score : scores.domains) {
    const std::vector<std::int32_t> ids = tokens_of(score.domain);
    double bits = 0.0;
    for (std::size_t begin = 0; begin + 1 < ids.size(); begin += kSeq) {
      const ArenaScope scope(tiny.arena);
      const auto count = static_cast<std::int64_t>(std::min<std::size_t>(kSeq, ids.size() - 1 - begin));
      auto length = static_cast<std::int32_t>(count);
      nn::Batch batch;
      batch.tokens = {ids.data() + begin, DType::i32, Device::cpu, {1, count}};
      batch.targets = {ids.data() + begin + 1, DType::i32, Device::cpu, {1, count}};
      batch.lengths = {&length, DType::i32, Device::cpu, {1}};
      batch.segments = batch.domains = batch.tokens;
      batch.global_targets = batch.global_tokens = batch.global_targets_of_step = count;
      const TensorView losses = tiny.arena.tensor(DType::f64, {count});
      const TensorView logits = tiny.arena.tensor(DType::f64, {count, vocab});
      model.evaluate(tiny.step, batch, {}, losses, &logits);
      for (std::int64_t t = 0; t < count; ++t) {
        const double* row = logits.as<double>() + t * vocab;
        double sum = 0.0;
        for (std::int64_t v = 0; v < vocab; ++v) sum += std::exp(row[v]);
        bits += std::log2(sum) - row[ids[begin + 1 + static_cast<std::size_t>(t)]] / std::log(2.0);
      }
    }
    EXPECT_NEAR(score.bits_per_byte, bits / static_cast<double>(score.bytes), 1e-12) << score.domain;
  }
  const train::Scores all_at_once = evaluate(tiny, data, 100);
  for (std::size_t d = 0; d < 2; ++d) {
    EXPECT_NEAR(all_at_once.domains[d].loss, scores.domains[d].loss, 1e-13);
    EXPECT_EQ(all_at_once.domains[d].picks, scores.domains[d].picks);
    EXPECT_EQ(all_at_once.domains[d].bytes, scores.domains[d].bytes);
  }
}

// Equal scores choose class 0, "none". letters: 1 of 4 right; F1 of none = 2 * 1 / (1 + 4), of vowel 0; odd
// does not occur. digits: 2 of 3; none 2 * 2 / (2 + 3), odd 0.
TEST_F(Evaluate, MacroF1OfAClassifierThatAlwaysSaysTheSame) {
  TinyModel tiny(spec_of(nn::Head::classifier), single_, true);
  zero(tiny, BlockKind::trunk, "score");
  const train::Scores scores = evaluate(tiny, dataset(true), 2);
  ASSERT_EQ(scores.domains.size(), 2u);
  EXPECT_DOUBLE_EQ(scores.domains[0].accuracy, 0.25);
  EXPECT_DOUBLE_EQ(scores.domains[0].macro_f1, 0.5 * (2.0 / 5.0));
  EXPECT_DOUBLE_EQ(scores.domains[1].accuracy, 2.0 / 3.0);
  EXPECT_DOUBLE_EQ(scores.domains[1].macro_f1, 0.5 * (4.0 / 5.0));
  EXPECT_EQ(scores.domains[0].targets, 4);
  EXPECT_NEAR(scores.domains[0].loss, std::log(3.0), 1e-14);
}

// Predictions document by document, then F1 = 2 precision recall / (precision + recall) by its definition.
TEST_F(Evaluate, MacroF1FromPredictions) {
  TinyModel tiny(spec_of(nn::Head::classifier), single_, true);
  const nn::Transformer model = tiny.transformer();
  const train::Scores scores = evaluate(tiny, dataset(true), 3);
  const std::vector<std::string> labels = {"none", "odd", "vowel"};
  for (const train::DomainScore& score : scores.domains) {
    std::vector<std::pair<std::size_t, std::size_t>> said;  // label, prediction
    for (const Document& document : kDocuments) {
      if (score.domain != document.domain) continue;
      const ArenaScope scope(tiny.arena);
      const std::string text = document.text;
      std::vector<std::int32_t> ids;
      for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
      ids.push_back(data::Tokenizer::bytes().eos_id());
      if (static_cast<std::int64_t>(ids.size()) > kSeq) ids.resize(kSeq);
      const auto count = static_cast<std::int64_t>(ids.size());
      auto length = static_cast<std::int32_t>(count);
      std::int32_t label = 0;
      nn::Batch batch;
      batch.tokens = {ids.data(), DType::i32, Device::cpu, {1, count}};
      batch.targets = {&label, DType::i32, Device::cpu, {1}};
      batch.lengths = {&length, DType::i32, Device::cpu, {1}};
      batch.segments = batch.domains = batch.tokens;
      batch.global_targets = batch.global_targets_of_step = 1;
      batch.global_tokens = count;
      const TensorView losses = tiny.arena.tensor(DType::f64, {1});
      const TensorView logits = tiny.arena.tensor(DType::f64, {1, 3});
      model.evaluate(tiny.step, batch, {}, losses, &logits);
      std::size_t best = 0, truth = 0;
      for (std::size_t c = 1; c < 3; ++c)
        if (logits.as<double>()[c] > logits.as<double>()[best]) best = c;
      while (labels[truth] != document.label) ++truth;
      said.emplace_back(truth, best);
    }
    double f1 = 0.0, classes = 0.0, right = 0.0;
    for (std::size_t c = 0; c < 3; ++c) {
      double both = 0.0, truths = 0.0, predictions = 0.0;
      for (const auto& [truth, prediction] : said) {
        both += truth == c && prediction == c;
        truths += truth == c;
        predictions += prediction == c;
      }
      right += both;
      if (truths == 0.0) continue;
      ++classes;
      if (both == 0.0) continue;
      const double precision = both / predictions, recall = both / truths;
      f1 += 2.0 * precision * recall / (precision + recall);
    }
    EXPECT_NEAR(score.macro_f1, f1 / classes, 1e-15) << score.domain;
    EXPECT_NEAR(score.accuracy, right / static_cast<double>(said.size()), 1e-15) << score.domain;
  }
}

}  // namespace
}  // namespace moecollab::test
