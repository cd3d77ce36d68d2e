// Tensors, arena, parameter store, expert slots.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "moecollab/core/arena.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/param_store.hpp"

namespace moecollab {
namespace {

TEST(BFloat16, RoundsToNearestEvenAndKeepsSpecials) {
  EXPECT_EQ(BFloat16(1.0f).bits, 0x3f80);
  EXPECT_EQ(BFloat16(1.00390625f).bits, 0x3f80);  // half way, even below
  EXPECT_EQ(BFloat16(1.01171875f).bits, 0x3f82);  // half way, even above
  EXPECT_EQ(BFloat16(1.00390637f).bits, 0x3f81);  // just over half
  EXPECT_EQ(BFloat16(-0.0f).bits, 0x8000);
  EXPECT_EQ(BFloat16(std::numeric_limits<float>::infinity()).bits, 0x7f80);
  EXPECT_EQ(BFloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Tensor, RowsAndTypesAreChecked) {
  const Tensor t(DType::f32, {4, 3});
  EXPECT_EQ(t.view().rows(1, 3).data, t.view().as<float>() + 3);
  EXPECT_EQ(t.view().rows(1, 3).shape, (Shape{2, 3}));
  EXPECT_THROW(t.view().rows(1, 5), ShapeError);
  EXPECT_THROW(t.view().rows(-1, 2), ShapeError);
  EXPECT_THROW(t.view().as<double>(), DTypeError);
  EXPECT_THROW(t.view().reshaped({5, 2}), ShapeError);
  EXPECT_THROW((Shape{1, 2, 3, 4, 5}), ShapeError);
  EXPECT_THROW((Shape{-1}), ShapeError);
}

TEST(Arena, NeverMovesReusesAndPoisons) {
  Arena arena(1024, true);
  const TensorView a = arena.tensor(DType::f32, {10});
  EXPECT_TRUE(std::isnan(a.as<float>()[9]));
  a.as<float>()[0] = 5.0f;
  const Arena::Mark mark = arena.mark();
  const TensorView big = arena.tensor(DType::f64, {1000});  // larger than a slab
  const TensorView c = arena.tensor(DType::i32, {3});
  EXPECT_EQ(c.as<std::int32_t>()[2], -1);
  EXPECT_EQ(a.as<float>()[0], 5.0f);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(big.data) % 64, 0u);
  const std::int64_t reserved = arena.reserved_bytes(), peak = arena.peak_bytes();
  arena.release(mark);
  EXPECT_EQ(arena.tensor(DType::f64, {1000}).data, big.data);  // the same memory again
  EXPECT_EQ(arena.tensor(DType::i32, {3}).data, c.data);
  EXPECT_EQ(arena.reserved_bytes(), reserved);
  EXPECT_EQ(arena.peak_bytes(), peak);
  arena.reset();
  EXPECT_EQ(arena.used_bytes(), 0);
}

// Sizes that differ from step to step, as rows of experts do, take little more memory than is in use at once.
TEST(Arena, ReservesLittleMoreThanItsPeak) {
  Arena arena(1024);
  const auto step = [&](int number) {
    const ArenaScope scope(arena);
    for (std::int64_t layer = 0; layer < 12; ++layer) {
      arena.tensor(DType::u8, {3000});
      arena.tensor(DType::u8, {8000 + (number * 7919 + layer * 104729) % 2000});
      const ArenaScope inner(arena);
      arena.tensor(DType::u8, {6000});
      arena.tensor(DType::u8, {9000 - (number * 6007 + layer * 1299709) % 2000});
    }
  };
  for (int number = 0; number < 50; ++number) {
    step(number);
    EXPECT_LE(arena.reserved_bytes(), arena.peak_bytes() + arena.peak_bytes() / 8) << "step " << number;
  }
  const std::int64_t reserved = arena.reserved_bytes();
  const void* const first = arena.tensor(DType::u8, {1}).data;
  arena.reset();
  step(7);
  EXPECT_EQ(arena.tensor(DType::u8, {1}).data, first);  // the one slab, where it was
  EXPECT_EQ(arena.reserved_bytes(), reserved);
}

std::vector<ParamSpec> specs() {
  return {{"w", {3, 5}, Init::normal(0.5), true, false}, {"g", {7}, Init::ones(), false, false}};
}

TEST(ParamStore, BlocksHaveTheSlotsTheyNeed) {
  ParamStore store(DType::bf16);
  const Uuid uuid = Uuid::from_seed(1, 0);
  const BlockId trunk = store.add_block(BlockKind::trunk, {}, specs(), true);
  const BlockId expert = store.add_block(BlockKind::expert, uuid, specs(), false);
  const BlockId router = store.add_block(BlockKind::router, uuid, specs(), true);
  EXPECT_EQ(store.block(trunk).value().dtype, DType::bf16);
  EXPECT_EQ(store.block(trunk).master().dtype, DType::f32);
  EXPECT_EQ(store.block(router).value().dtype, DType::f32);  // the gate never computes in bf16
  EXPECT_FALSE(store.block(router).has_separate_master());
  EXPECT_TRUE(store.block(expert).grad().empty());
  EXPECT_TRUE(store.block(expert).exp_avg().empty());
  EXPECT_EQ(store.block(trunk).params[1].offset % 16, 0);
  EXPECT_TRUE(store.grad(store.find(BlockKind::expert, uuid, "w")).empty());
  EXPECT_THROW(store.add_block(BlockKind::expert, uuid, specs(), true), InternalError);
  EXPECT_THROW(store.find(BlockKind::expert, uuid, "x"), InternalError);
  store.remove_block(expert);
  EXPECT_EQ(store.find_block(BlockKind::expert, uuid), nullptr);
  EXPECT_EQ(store.block(router).id, router);  // ids stay
  EXPECT_THROW(store.block(expert), InternalError);
}

TEST(ParamStore, ValuesDependOnSeedAndNameOnly) {
  ParamStore one(DType::f32), two(DType::f32);
  const Uuid a = Uuid::from_seed(1, 0), b = Uuid::from_seed(1, 1);
  one.add_block(BlockKind::expert, a, specs(), true);
  one.add_block(BlockKind::expert, b, specs(), true);
  two.add_block(BlockKind::expert, b, specs(), false);
  for (const Block& block : one.blocks()) one.initialise(block.id, 5);
  two.initialise(two.blocks()[0].id, 5);
  const Block &x = one.blocks()[0], &y = one.blocks()[1], &z = two.blocks()[0];
  const auto bytes = static_cast<std::size_t>(y.value().size_bytes());
  EXPECT_EQ(std::memcmp(y.value().data, z.value().data, bytes), 0);
  EXPECT_NE(std::memcmp(x.value().data, y.value().data, bytes), 0);
  EXPECT_EQ(y.part(y.value(), 1).as<float>()[6], 1.0f);
}

TEST(ExpertSlots, PlaceOnTheLeastLoadedRankAndMoveNobody) {
  ExpertSlots slots(3);
  const auto insert = [&](const char* name, std::int64_t width) {
    ExpertSlot slot;
    slot.uuid = Uuid::from_seed(1, static_cast<std::uint64_t>(slots.size()));
    slot.name = name;
    slot.width = width;
    slots.insert(slot);
    return slots.slots().back().rank;
  };
  EXPECT_EQ(insert("a", 8), 0);
  EXPECT_EQ(insert("b", 4), 1);
  EXPECT_EQ(insert("c", 4), 2);
  EXPECT_EQ(insert("d", 2), 1);  // tie of 1 and 2: the lower
  EXPECT_EQ(insert("e", 2), 2);
  EXPECT_EQ(slots.owned_by(1), (std::vector<std::int32_t>{1, 3}));
  EXPECT_THROW(insert("a", 1), UsageError);
  EXPECT_EQ(slots.find_by_text("d").width, 2);
  EXPECT_EQ(slots.find_by_text(to_string(slots.slots()[2].uuid).substr(0, 8)).name, "c");
  EXPECT_THROW(slots.find_by_text("nobody"), UsageError);
  slots.erase(slots.slots()[0].uuid);
  EXPECT_EQ(slots.owned_by(1), (std::vector<std::int32_t>{0, 2}));  // positions close up, ranks stay
  EXPECT_THROW(slots.erase(Uuid::from_seed(9, 9)), UsageError);
  EXPECT_THROW(ExpertSlots(0), UsageError);
}

}  // namespace
}  // namespace moecollab
