// Capacity: an expert takes at most ceil(factor * K * T / E) picks of the micro-batch, the first ones in
// token order; the rest is dropped and counted.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/gradient_check.hpp"
#include "support/tiny_model.hpp"

namespace moecollab::test {
namespace {

class Capacity : public testing::TestWithParam<double> {};

TEST_P(Capacity, KeepsTheFirstPicksOfEachExpert) {
  TinySpec spec = tiny_spec("capacity");
  spec.config.num_hidden_layers = 1;
  spec.config.capacity_factor = GetParam();
  spec.padded = true;
  spec.sequences = 6;
  const nn::Parallel single = nn::Parallel::single();
  TinyModel tiny(spec, single, true);
  const nn::Transformer model = tiny.transformer();
  const nn::Batch& batch = tiny.batches[0].view;
  const auto limit =
      static_cast<std::int64_t>(std::ceil(GetParam() * 2.0 * static_cast<double>(batch.global_tokens) / 4.0));

  const ArenaScope scope(tiny.arena);
  nn::Transformer::Saved saved;
  model.forward(tiny.step, batch, saved);
  const nn::MoeLayer::Saved& moe = saved.blocks[0].moe;
  std::vector<std::int64_t> taken(4, 0);
  std::int64_t dropped = 0;
  for (std::int64_t pick = 0; pick < moe.routing.picks.numel(); ++pick) {
    const std::int32_t expert = moe.routing.picks.as<std::int32_t>()[pick];
    const std::int32_t place = moe.plan.slot_of_pick.as<std::int32_t>()[pick];
    if (expert < 0) {
      EXPECT_EQ(place, -1);
      continue;
    }
    const bool kept = taken[static_cast<std::size_t>(expert)] < limit;
    EXPECT_EQ(place >= 0, kept) << "pick " << pick;
    if (kept)
      ++taken[static_cast<std::size_t>(expert)];
    else
      ++dropped;
  }
  EXPECT_EQ(rows_per_slot(moe.plan, 4), taken);
  EXPECT_EQ(tiny.evaluate(model).dropped_picks, dropped);
  EXPECT_EQ(dropped > 0, GetParam() < 2.0);
}

INSTANTIATE_TEST_SUITE_P(Factors, Capacity, testing::Values(0.3, 0.7, 1.0, 2.0));

TEST(Capacity, ThatIsNeverReachedChangesNoBit) {
  TinySpec spec = tiny_spec("wide");
  TinySpec capped = spec;
  capped.config.capacity_factor = 2.0;  // every token may go to one expert
  const nn::Parallel single = nn::Parallel::single();
  TinyModel a(spec, single), b(capped, single);
  const nn::Transformer free = a.transformer(), limited = b.transformer();
  EXPECT_EQ(a.forward_backward(free).loss, b.forward_backward(limited).loss);
  for (const Block& block : a.params.blocks())
    EXPECT_TRUE(same_bits(block.grad(), b.params.find_block(block.kind, block.uuid)->grad()));
}

}  // namespace
}  // namespace moecollab::test
