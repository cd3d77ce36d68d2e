// Generation over ranks: one rank has the sequences, the others lend their experts.
#include <gtest/gtest.h>

#include "dist/one_rank.hpp"

namespace moecollab::test {
namespace {

constexpr std::int64_t kPrompt = 4, kSeq = 7, kRows = 2;

void run(TinyModel& tiny, const nn::Batch& whole, std::int64_t rows, std::vector<Tensor>& logits) {
  const nn::Transformer model = tiny.transformer();
  const std::int64_t vocab = tiny.spec.config.vocab_size;
  Tensor prompt(DType::i32, {rows, kPrompt}), lengths(DType::i32, {rows}), next(DType::i32, {rows}),
      at(DType::i32, {rows});
  const auto token = [&](std::int64_t b, std::int64_t i) {
    return whole.tokens.as<std::int32_t>()[b * kSeq + i];
  };
  for (std::int64_t b = 0; b < rows; ++b) {
    lengths.view().as<std::int32_t>()[b] = kPrompt;
    for (std::int64_t i = 0; i < kPrompt; ++i)
      prompt.view().as<std::int32_t>()[b * kPrompt + i] = token(b, i);
  }
  nn::Batch batch;
  batch.tokens = prompt.view();
  batch.lengths = lengths.view();
  const auto caches = model.make_caches(tiny.arena, rows, kSeq);
  logits.emplace_back(tiny.spec.config.dtype, Shape{rows, vocab});
  model.prefill(tiny.step, batch, caches, logits.back().view());
  for (std::int64_t position = kPrompt; position < kSeq; ++position) {
    for (std::int64_t b = 0; b < rows; ++b) {
      next.view().as<std::int32_t>()[b] = token(b, position);
      at.view().as<std::int32_t>()[b] = static_cast<std::int32_t>(position);
    }
    logits.emplace_back(tiny.spec.config.dtype, Shape{rows, vocab});
    model.decode(tiny.step, next.view(), at.view(), caches, logits.back().view());
  }
}

class ParallelDecode : public testing::TestWithParam<double> {};

TEST_P(ParallelDecode, IsThatOfOneRank) {
  TinySpec spec = tiny_spec("decode");
  spec.num_experts = 5;
  spec.sequences = kRows;
  spec.seq_len = kSeq;
  spec.config.use_qk_norm = true;
  spec.config.capacity_factor = GetParam();
  spec = settled(spec, 1e-3);
  const nn::Parallel single = nn::Parallel::single();
  for (const DType dtype : {DType::f64, DType::f32})
    for (const std::int64_t expert_parallel_size : layouts(Communicator::world().size())) {
      const nn::Parallel parallel(Communicator::world(), expert_parallel_size);
      TinyModel many(in_type(spec, dtype), parallel, true), one(in_type(spec, dtype), single);
      std::vector<Tensor> logits, want;
      const nn::Batch whole = one.batches[0].view;
      const bool speaks = parallel.world().rank() == 0;
      run(many, whole, speaks ? kRows : 0, logits);
      run(one, whole, kRows, want);
      for (std::size_t i = 0; speaks && i < want.size(); ++i)
        EXPECT_LE(max_abs_difference(logits[i].view(), want[i].view()),
                  rounding_bound(dtype) * max_abs(want[i].view()))
            << layout_name(parallel, many.spec) << ", call " << i;
    }
}

INSTANTIATE_TEST_SUITE_P(CapacityFactors, ParallelDecode, testing::Values(0.0, 0.5));

}  // namespace
}  // namespace moecollab::test
