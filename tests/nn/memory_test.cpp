// The bound that a plan states against what the arena really holds.
#include "moecollab/nn/memory.hpp"

#include <gtest/gtest.h>

#include "moecollab/nn/parallel.hpp"
#include "support/tiny_model.hpp"

namespace moecollab {
namespace {

class MemoryBound : public testing::TestWithParam<test::TinySpec> {};

TEST_P(MemoryBound, CoversAStep) {
  const test::TinySpec& spec = GetParam();
  const nn::Parallel alone = nn::Parallel::single();
  test::TinyModel tiny(spec, alone);
  tiny.forward_backward(tiny.transformer());
  const std::int64_t bound =
      nn::activation_bytes_bound(spec.config, tiny.slots, {spec.sequences, spec.seq_len, 1, 0});
  // The tensors here are smaller than the fixed parts of the bound, so only its upper side says something.
  EXPECT_LE(tiny.arena.peak_bytes(), bound);
}

INSTANTIATE_TEST_SUITE_P(Variants, MemoryBound, testing::ValuesIn(test::all_variants()),
                         [](const auto& variant) { return test::name_of(variant.param); });

// At a size where activations dominate: the bound is above the peak and below three times it, and a row
// budget lowers both.
TEST(MemoryBoundAtSize, IsCloseWhereItMatters) {
  test::TinySpec spec = test::tiny_spec("large");
  spec = test::in_type(spec, DType::f32);
  spec.config.vocab_size = 50;
  spec.config.hidden_size = 64;
  spec.config.max_position_embeddings = 256;
  spec.sequences = 16;
  spec.seq_len = 256;
  const nn::Parallel alone = nn::Parallel::single();
  std::int64_t peaks[2], bounds[2];
  for (const int budgeted : {0, 1}) {
    spec.config.max_rows = budgeted == 1 ? 512 : 0;
    test::TinyModel tiny(spec, alone);
    tiny.forward_backward(tiny.transformer());
    peaks[budgeted] = tiny.arena.peak_bytes();
    bounds[budgeted] =
        nn::activation_bytes_bound(spec.config, tiny.slots, {spec.sequences, spec.seq_len, 1, 0});
    EXPECT_LE(peaks[budgeted], bounds[budgeted]);
    EXPECT_LT(bounds[budgeted], 3 * peaks[budgeted]);
  }
  EXPECT_LT(peaks[1], peaks[0]);
  EXPECT_LT(bounds[1], bounds[0]);
}

}  // namespace
}  // namespace moecollab
