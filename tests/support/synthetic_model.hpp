// Blocks without a model: what storage needs, with values that depend on seed, block and parameter name only,
// so that any rank can say what any tensor must be.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/param_store.hpp"
#include "moecollab/core/random.hpp"

namespace moecollab::test {

constexpr std::int64_t kHidden = 8;
constexpr std::int64_t kLayers = 2;

inline ExpertSlot synthetic_slot(std::uint64_t i) {
  ExpertSlot slot;
  slot.uuid = Uuid::from_seed(7, i);
  slot.name = "expert-" + std::to_string(i);
  slot.owner = "owner-" + std::to_string(i % 2);
  slot.domain = "domain-" + std::to_string(i);
  slot.version = static_cast<std::int64_t>(i);
  slot.width = 5 + 3 * static_cast<std::int64_t>(i % 3);  // uneven; never kHidden's equal in all
  slot.trainable = i % 3 != 1;
  return slot;
}

inline std::vector<ExpertSlot> synthetic_slots(std::uint64_t count) {
  std::vector<ExpertSlot> slots;
  for (std::uint64_t i = 0; i < count; ++i) slots.push_back(synthetic_slot(i));
  return slots;
}

inline std::vector<ParamSpec> trunk_specs() {
  std::vector<ParamSpec> specs{{"embed_tokens.weight", {13, kHidden}, Init::normal(1)}};
  for (std::int64_t l = 0; l < kLayers; ++l) {
    const std::string layer = "layers." + std::to_string(l);
    specs.push_back({layer + ".self_attn.q_proj.weight", {kHidden, kHidden}, Init::normal(1)});
    specs.push_back({layer + ".input_layernorm.weight", {kHidden}, Init::ones(), false});
  }
  return specs;
}
inline std::vector<ParamSpec> router_specs() {
  std::vector<ParamSpec> specs;
  for (std::int64_t l = 0; l < kLayers; ++l) {
    const std::string layer = "layers." + std::to_string(l);
    specs.push_back({layer + ".weight", {kHidden}, Init::normal(1)});
    specs.push_back({layer + ".logit_bias", {1}, Init::zeros(), false});
    specs.push_back({layer + ".selection_bias", {1}, Init::zeros(), false, true});
  }
  return specs;
}
inline std::vector<ParamSpec> expert_specs(std::int64_t width) {
  std::vector<ParamSpec> specs;
  for (std::int64_t l = 0; l < kLayers; ++l) {
    const std::string layer = "layers." + std::to_string(l);
    specs.push_back({layer + ".gate_proj.weight", {width, kHidden}, Init::normal(1)});
    specs.push_back({layer + ".up_proj.weight", {width, kHidden}, Init::normal(1)});
    specs.push_back({layer + ".down_proj.weight", {kHidden, width}, Init::normal(1)});
  }
  return specs;
}

struct SyntheticModel {
  ExpertSlots slots;
  ParamStore params;

  // The blocks that rank `rank` of `ep` holds; all zero.
  SyntheticModel(DType dtype, const std::vector<ExpertSlot>& experts, std::int32_t ep = 1,
                 std::int32_t rank = 0)
      : slots(ep), params(dtype) {
    for (const ExpertSlot& slot : experts) slots.insert(slot);
    params.add_block(BlockKind::trunk, {}, trunk_specs(), true);
    for (const ExpertSlot& slot : slots.slots())
      params.add_block(BlockKind::router, slot.uuid, router_specs(), true);
    for (const std::int32_t id : slots.owned_by(rank)) {
      const ExpertSlot& slot = slots.slots()[static_cast<std::size_t>(id)];
      params.add_block(BlockKind::expert, slot.uuid, expert_specs(slot.width), slot.trainable);
    }
  }

  SyntheticModel& fill(std::uint64_t seed) {
    std::vector<BlockId> ids;
    for (const Block& block : params.blocks()) ids.push_back(block.id);
    for (const BlockId id : ids) {
      Block& block = params.block(id);
      const auto draw = [&](const char* slot, TensorView memory) {
        for (std::size_t i = 0; i < block.params.size(); ++i) {
          const std::string name =
              std::string(to_string(block.kind)) + to_string(block.uuid) + slot + block.params[i].spec.name;
          fill_normal(seed, stream_of(name.c_str()), 1.0, block.part(memory, static_cast<std::int32_t>(i)));
        }
      };
      draw("master", block.master());
      params.refresh_value(id);
      if (!block.trainable) continue;
      draw("exp_avg", block.exp_avg());
      draw("exp_avg_sq", block.exp_avg_sq());
      block.optimizer_step = static_cast<std::int64_t>(seed % 1000 + block.uuid.low % 17);
    }
    return *this;
  }
};

inline bool same_bits(ConstTensorView a, ConstTensorView b) {
  if (a.empty() || b.empty()) return a.empty() == b.empty();
  return a.dtype == b.dtype && a.shape == b.shape &&
         std::memcmp(a.data, b.data, static_cast<std::size_t>(a.size_bytes())) == 0;
}

// Empty when every block of `a` has the bits of the same block in `b`; else the first that differs.
inline std::string difference(const SyntheticModel& a, const SyntheticModel& b, bool optimizer_state = true) {
  for (const Block& block : a.params.blocks()) {
    const std::string name = std::string(to_string(block.kind)) + " " + to_string(block.uuid);
    const Block* other = b.params.find_block(block.kind, block.uuid);
    if (other == nullptr) return name + " is missing";
    if (!same_bits(block.master(), other->master())) return name + ": master";
    if (!same_bits(block.value(), other->value())) return name + ": value";
    if (!optimizer_state) continue;
    if (!same_bits(block.exp_avg(), other->exp_avg())) return name + ": exp_avg";
    if (!same_bits(block.exp_avg_sq(), other->exp_avg_sq())) return name + ": exp_avg_sq";
    if (block.trainable && block.optimizer_step != other->optimizer_step) return name + ": optimizer_step";
  }
  return "";
}

}  // namespace moecollab::test
