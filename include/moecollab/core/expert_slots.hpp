// The ordered list of experts: the same on every rank and replica. The position in the list is the expert's
// id in routing; the UUID is its identity everywhere else.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moecollab/core/uuid.hpp"

namespace moecollab {

enum class ExpertKind : std::uint8_t {
  swiglu,   // down(silu(gate x) * up x), hidden width F
  adapter,  // x + B relu(A x), rank F
};
const char* to_string(ExpertKind kind);
ExpertKind expert_kind_from_string(const std::string& name);  // throws UsageError

struct ExpertSlot {
  Uuid uuid;
  std::string name;  // what people call it; unique in the list
  std::string owner = "public";
  std::string domain = "general";
  std::int64_t version = 0;
  ExpertKind kind = ExpertKind::swiglu;
  std::int64_t width = 0;  // F: hidden width of a SwiGLU expert, rank of an adapter
  bool trainable = true;
  std::int32_t rank = 0;  // owner in the expert-parallel group; not saved, placement decides it
};

class ExpertSlots {
 public:
  ExpertSlots() = default;
  explicit ExpertSlots(std::int32_t expert_parallel_size);  // ep >= 1

  std::span<const ExpertSlot> slots() const { return slots_; }
  std::int64_t size() const { return static_cast<std::int64_t>(slots_.size()); }  // E
  std::int32_t expert_parallel_size() const { return ep_; }

  // Appends; `slot.rank` is set to the least-loaded rank (load = sum of widths; the lower rank wins ties). No
  // existing slot moves. Throws UsageError when the UUID or the name is taken.
  void insert(ExpertSlot slot);
  void erase(const Uuid& uuid);  // throws UsageError when absent
  void set_trainable(const Uuid& uuid, bool trainable);
  const ExpertSlot* find(const Uuid& uuid) const;  // null when absent
  // By UUID text, unique prefix of it (8 characters or more), or name. Throws UsageError naming the nearest.
  const ExpertSlot& find_by_text(const std::string& text) const;

  // The slots a rank owns, in list order, as positions in slots().
  std::vector<std::int32_t> owned_by(std::int32_t rank) const;

 private:
  std::int32_t ep_ = 1;
  std::vector<ExpertSlot> slots_;
};

}  // namespace moecollab
