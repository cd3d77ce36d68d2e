// Generation with a cache against the whole forward pass: the same logits at every position, within 40 * 64
// times the unit roundoff of the largest logit (64: the longest sum, rounded up; 40: operations a number
// passes one after another).
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "support/gradient_check.hpp"
#include "support/tiny_model.hpp"

namespace moecollab::test {
namespace {

constexpr std::int64_t kSeq = 9, kSteps = 4;
constexpr std::int32_t kPrompt[2] = {3, 5};

std::vector<TinySpec> decoders() {
  std::vector<TinySpec> list;
  for (const DType dtype : {DType::f64, DType::f32}) {
    TinySpec spec = tiny_spec("plain");
    spec.config.dtype = dtype;
    spec.sequences = 2;
    spec.seq_len = kSeq;
    list.push_back(spec);
    spec.name = "qk_norm_shared_dense";
    spec.config.use_qk_norm = true;
    spec.config.decoder_sparse_step = 2;
    spec.config.shared_expert_intermediate_size = 3;
    spec.config.tie_word_embeddings = true;
    list.push_back(spec);
    spec = in_type(list.front(), dtype);
    spec.name = "sigmoid_biased";
    spec.config.scoring = ops::Scoring::sigmoid;
    spec.selection_bias = true;
    list.push_back(spec);
    spec = in_type(list.front(), dtype);
    spec.name = "four_heads_two_groups";
    spec.config.num_attention_heads = 4;
    spec.config.num_key_value_heads = 2;
    list.push_back(spec);
  }
  return list;
}

class Decode : public testing::TestWithParam<TinySpec> {
 protected:
  double bound(ConstTensorView logits) const {
    const double roundoff = std::ldexp(1.0, GetParam().config.dtype == DType::f64 ? -53 : -24);
    return 40.0 * 64.0 * roundoff * max_abs(logits);
  }
};

TEST_P(Decode, AgreesWithTheForwardPassAtEveryPosition) {
  const TinySpec spec = settled(GetParam(), 1e-3);
  const DType dtype = spec.config.dtype;
  const std::int64_t vocab = spec.config.vocab_size;
  const nn::Parallel single = nn::Parallel::single();
  TinyModel tiny(spec, single, true);
  const nn::Transformer model = tiny.transformer();
  const nn::Batch& whole = tiny.batches[0].view;
  Tensor losses(tiny.params.accumulator_dtype(), {2 * kSeq}), want(dtype, {2 * kSeq, vocab});
  const TensorView want_view = want.view();
  model.evaluate(tiny.step, whole, {}, losses.view(), &want_view);
  const auto want_at = [&](std::int64_t b, std::int64_t position) {
    return want.view().rows(b * kSeq + position, b * kSeq + position + 1);
  };

  // Prompts of 3 and 5 tokens, the shorter one padded on the right.
  Tensor tokens(DType::i32, {2, 5}), lengths(DType::i32, {2}), next(DType::i32, {2}), at(DType::i32, {2});
  const auto token = [&](std::int64_t b, std::int64_t position) {
    return whole.tokens.as<std::int32_t>()[b * kSeq + position];
  };
  for (std::int64_t b = 0; b < 2; ++b) {
    lengths.view().as<std::int32_t>()[b] = kPrompt[b];
    for (std::int64_t i = 0; i < 5; ++i)
      tokens.view().as<std::int32_t>()[b * 5 + i] = i < kPrompt[b] ? token(b, i) : 0;
  }
  nn::Batch prompt = whole;
  prompt.tokens = tokens.view();
  prompt.lengths = lengths.view();
  const auto caches = model.make_caches(tiny.arena, 2, kSeq);
  const TensorView logits = tiny.arena.tensor(dtype, {2, vocab});
  model.prefill(tiny.step, prompt, caches, logits);
  for (std::int64_t b = 0; b < 2; ++b)
    EXPECT_LE(max_abs_difference(logits.rows(b, b + 1), want_at(b, kPrompt[b] - 1)), bound(want.view()));
  for (std::int32_t i = 0; i < kSteps; ++i) {
    for (std::int64_t b = 0; b < 2; ++b) {
      at.view().as<std::int32_t>()[b] = kPrompt[b] + i;
      next.view().as<std::int32_t>()[b] = token(b, kPrompt[b] + i);
    }
    model.decode(tiny.step, next.view(), at.view(), caches, logits);
    for (std::int64_t b = 0; b < 2; ++b)
      EXPECT_LE(max_abs_difference(logits.rows(b, b + 1), want_at(b, kPrompt[b] + i)), bound(want.view()))
          << "sequence " << b << ", position " << kPrompt[b] + i;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Decode, testing::ValuesIn(decoders()), [](const auto& instance) {
  return name_of(instance.param) + "_" + to_string(instance.param.config.dtype);
});

// Capacity belongs to training: a sequence is continued alike, whoever else is in the batch.
TEST(Decode, DropsNothingWhateverTheCapacity) {
  TinySpec spec = tiny_spec("capped");
  spec.sequences = 1;
  spec.seq_len = 6;
  TinySpec capped = spec;
  capped.config.capacity_factor = 0.1;
  const nn::Parallel single = nn::Parallel::single();
  Tensor logits[2] = {Tensor(DType::f64, {1, 11}), Tensor(DType::f64, {1, 11})};
  for (int i = 0; i < 2; ++i) {
    TinyModel tiny(i == 0 ? spec : capped, single, true);
    const nn::Transformer model = tiny.transformer();
    const auto caches = model.make_caches(tiny.arena, 1, 8);
    model.prefill(tiny.step, tiny.batches[0].view, caches, logits[i].view());
    std::int32_t token = 4, position = 6;
    model.decode(tiny.step, {&token, DType::i32, Device::cpu, {1}}, {&position, DType::i32, Device::cpu, {1}},
                 caches, logits[i].view());
  }
  EXPECT_TRUE(same_bits(logits[0].view(), logits[1].view()));
}

}  // namespace
}  // namespace moecollab::test
