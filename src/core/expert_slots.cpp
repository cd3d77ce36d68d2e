#include "moecollab/core/expert_slots.hpp"

#include <algorithm>

#include "moecollab/core/error.hpp"

namespace moecollab {

const char* to_string(ExpertKind kind) { return kind == ExpertKind::swiglu ? "swiglu" : "adapter"; }

ExpertKind expert_kind_from_string(const std::string& name) {
  if (name == "swiglu") return ExpertKind::swiglu;
  if (name == "adapter") return ExpertKind::adapter;
  throw UsageError("unknown expert kind '" + name + "': use swiglu or adapter");
}

ExpertSlots::ExpertSlots(std::int32_t expert_parallel_size) : ep_(expert_parallel_size) {
  if (ep_ < 1) throw UsageError("expert-parallel size must be at least 1, got " + std::to_string(ep_));
}

void ExpertSlots::insert(ExpertSlot slot) {
  for (const ExpertSlot& other : slots_) {
    if (other.uuid == slot.uuid)
      throw UsageError("expert " + to_string(slot.uuid) + " is already in the model as '" + other.name + "'");
    if (other.name == slot.name)
      throw UsageError("an expert named '" + slot.name +
                       "' is already in the model: give this one another name");
  }
  std::vector<std::int64_t> load(static_cast<std::size_t>(ep_), 0);
  for (const ExpertSlot& other : slots_) load[static_cast<std::size_t>(other.rank)] += other.width;
  slot.rank = static_cast<std::int32_t>(std::min_element(load.begin(), load.end()) - load.begin());
  slots_.push_back(std::move(slot));
}

void ExpertSlots::erase(const Uuid& uuid) {
  if (std::erase_if(slots_, [&](const ExpertSlot& slot) { return slot.uuid == uuid; }) == 0)
    throw UsageError("no expert " + to_string(uuid) + " in the model");
}

void ExpertSlots::set_trainable(const Uuid& uuid, bool trainable) {
  for (ExpertSlot& slot : slots_)
    if (slot.uuid == uuid) {
      slot.trainable = trainable;
      return;
    }
  throw UsageError("no expert " + to_string(uuid) + " in the model");
}

const ExpertSlot* ExpertSlots::find(const Uuid& uuid) const {
  for (const ExpertSlot& slot : slots_)
    if (slot.uuid == uuid) return &slot;
  return nullptr;
}

const ExpertSlot& ExpertSlots::find_by_text(const std::string& text) const {
  const ExpertSlot* found = nullptr;
  std::string names;
  for (const ExpertSlot& slot : slots_) {
    if (slot.name == text) return slot;
    names += (names.empty() ? "" : ", ") + slot.name;
    if (text.size() >= 8 && to_string(slot.uuid).starts_with(text)) {
      if (found != nullptr)
        throw UsageError("'" + text + "' begins the id of more than one expert: give more of it");
      found = &slot;
    }
  }
  if (found == nullptr) throw UsageError("no expert '" + text + "' in the model; it has: " + names);
  return *found;
}

std::vector<std::int32_t> ExpertSlots::owned_by(std::int32_t rank) const {
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < slots_.size(); ++i)
    if (slots_[i].rank == rank) ids.push_back(static_cast<std::int32_t>(i));
  return ids;
}

}  // namespace moecollab
