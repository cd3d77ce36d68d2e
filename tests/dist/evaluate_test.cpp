// Evaluation over ranks: the same scores on every rank, and those of one rank.
#include "moecollab/train/evaluate.hpp"

#include <gtest/gtest.h>

#include "dist/one_rank.hpp"
#include "moecollab/data/token_file.hpp"
#include "support/temporary_directory.hpp"

namespace moecollab::test {
namespace {

class ParallelEvaluate : public testing::TestWithParam<nn::Head> {
 protected:
  data::Dataset dataset() const {  // every rank writes and reads its own
    const data::Tokenizer tokenizer = data::Tokenizer::bytes();
    data::TokenFileWriter writer(directory_ / "tokens.h5", tokenizer, {1, 0.0});
    std::string text = "a";
    for (int i = 0; i < 7; ++i, text += static_cast<char>('b' + i))
      writer.add(writer.domain(i % 2 == 0 ? "even" : "odd"), text, tokenizer.encode(text),
                 writer.label(i % 3 == 0 ? "third" : "other"));
    writer.finish({});
    return data::Dataset::open(directory_ / "tokens.h5");
  }
  TemporaryDirectory directory_;
};

TEST_P(ParallelEvaluate, IsThatOfOneRank) {
  TinySpec spec = GetParam() == nn::Head::lm ? tiny_spec("lm") : tiny_classifier("classifier");
  spec.config.vocab_size = data::Tokenizer::bytes().vocab_size();
  spec.config.num_labels = GetParam() == nn::Head::lm ? 0 : 2;
  spec.num_experts = 5;
  const data::Dataset data = dataset();
  const data::EvalSet set(data, 5, 100,
                          GetParam() == nn::Head::lm ? data::Task::lm : data::Task::classification,
                          data::Split::train);
  const nn::Parallel single = nn::Parallel::single();
  TinyModel one(spec, single);
  const train::Scores want = train::evaluate(one.step, one.transformer(), single, data, set, 3);
  for (const std::int64_t expert_parallel_size : layouts(Communicator::world().size())) {
    const nn::Parallel parallel(Communicator::world(), expert_parallel_size);
    TinyModel many(spec, parallel, true);
    const train::Scores scores = train::evaluate(many.step, many.transformer(), parallel, data, set, 3);
    const double bound = rounding_bound(DType::f64);
    ASSERT_EQ(scores.domains.size(), want.domains.size());
    for (std::size_t d = 0; d < want.domains.size(); ++d) {
      const train::DomainScore &have = scores.domains[d], &reference = want.domains[d];
      EXPECT_EQ(have.domain, reference.domain);
      EXPECT_EQ(have.sequences, reference.sequences);
      EXPECT_EQ(have.targets, reference.targets);
      EXPECT_EQ(have.bytes, reference.bytes);
      EXPECT_EQ(have.picks, reference.picks);
      EXPECT_EQ(have.accuracy, reference.accuracy);
      EXPECT_EQ(have.macro_f1, reference.macro_f1);
      EXPECT_NEAR(have.loss, reference.loss, bound * reference.loss);
      EXPECT_NEAR(have.bits_per_byte, reference.bits_per_byte, bound * reference.bits_per_byte);
      EXPECT_NEAR(have.token_entropy, reference.token_entropy, bound);
      double loss = have.loss;  // to the bit on every rank
      parallel.world().broadcast(many.compute, {&loss, DType::f64, Device::cpu, {1}}, 0);
      EXPECT_EQ(loss, have.loss);
    }
    EXPECT_EQ(scores.batch_entropy, want.batch_entropy);
    EXPECT_EQ(scores.utilisation, want.utilisation);
  }
}

INSTANTIATE_TEST_SUITE_P(Heads, ParallelEvaluate, testing::Values(nn::Head::lm, nn::Head::classifier),
                         [](const auto& instance) { return nn::to_string(instance.param); });

}  // namespace
}  // namespace moecollab::test
