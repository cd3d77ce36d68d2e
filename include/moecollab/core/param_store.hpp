// Parameters live in a list of flat blocks: one trunk, one router block per expert slot, one block per expert
// this rank owns. Optimizer, norm, clipping, all-reduce and checkpoint loop over blocks, never over layers;
// adding or removing an expert inserts or frees a block between steps.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"
#include "moecollab/core/uuid.hpp"

namespace moecollab {

enum class BlockKind : std::uint8_t { trunk, router, expert };
const char* to_string(BlockKind kind);

struct Init {
  enum class Kind : std::uint8_t { zeros, ones, normal };
  Kind kind = Kind::zeros;
  double std = 0.0;
  static Init zeros() { return {}; }
  static Init ones() { return {Kind::ones, 0.0}; }
  static Init normal(double std) { return {Kind::normal, std}; }
};

struct ParamSpec {
  std::string name;  // unique in its block, e.g. "layers.0.self_attn.q_proj.weight"
  Shape shape;
  Init init;
  bool decay = true;    // weight decay applies (matrices yes; norms and biases no)
  bool buffer = false;  // state that is not trained by gradients (the selection bias)
};

using BlockId = std::int32_t;  // stable for the life of the block, never reused
struct ParamId {
  BlockId block = -1;
  std::int32_t index = -1;
  bool valid() const { return block >= 0; }
};

struct Param {
  ParamSpec spec;
  std::int64_t offset = 0;  // elements from the start of the block; a multiple of 16
};

// `value` is what the step reads, in the compute type (router blocks: always the accumulator type). `master`
// holds the weights in the accumulator type: the optimizer's truth. In f32 and f64 both are one memory.
// Gradient and moments are of the accumulator type and exist only while the block is trainable.
struct Block {
  BlockId id = -1;
  BlockKind kind = BlockKind::trunk;
  Uuid uuid;  // the expert's, for router and expert blocks; nil for the trunk
  bool trainable = false;
  std::int64_t optimizer_step = 0;  // updates this block has seen (Adam's bias correction)
  std::vector<Param> params;
  std::int64_t numel = 0;  // elements with padding; padding is zero and stays zero

  TensorView value() const { return value_.view(); }
  TensorView master() const { return master_.empty() ? value_.view() : master_.view(); }
  TensorView grad() const { return grad_.view(); }              // empty() when frozen
  TensorView exp_avg() const { return exp_avg_.view(); }        // first moment
  TensorView exp_avg_sq() const { return exp_avg_sq_.view(); }  // second moment
  bool has_separate_master() const { return !master_.empty(); }

  // The part of a slot that belongs to one parameter, in the parameter's shape.
  TensorView part(TensorView slot, std::int32_t index) const;
  std::int32_t find(const std::string& name) const;  // -1 when absent

 private:
  friend class ParamStore;
  Tensor value_, master_, grad_, exp_avg_, exp_avg_sq_;
};

class ParamStore {
 public:
  explicit ParamStore(DType compute, Device device = Device::cpu) : compute_(compute), device_(device) {}
  ParamStore(ParamStore&&) = default;
  ParamStore& operator=(ParamStore&&) = default;

  Device device() const { return device_; }  // where all slots of all blocks are
  DType compute_dtype() const { return compute_; }
  DType accumulator_dtype() const { return accumulator_of(compute_); }

  // Adds a block with all slots zero (values too: see `initialise`). Throws InternalError when (kind, uuid)
  // exists.
  BlockId add_block(BlockKind kind, const Uuid& uuid, std::span<const ParamSpec> specs, bool trainable);
  void remove_block(BlockId id);                   // between steps only
  void set_trainable(BlockId id, bool trainable);  // frees or zero-allocates gradient and moments

  void move_to(Device device);  // all slots of all blocks; waits

  // Fills the block's values by its specs. The draws depend only on (seed, kind, uuid, parameter name).
  void initialise(BlockId id, std::uint64_t seed);
  // After writing to master(): rounds it into value(). Nothing to do in f32 and f64.
  void refresh_value(BlockId id);
  void zero_grads(Stream& stream);

  std::span<const Block> blocks() const { return blocks_; }
  const Block& block(BlockId id) const;
  Block& block(BlockId id);
  const Block* find_block(BlockKind kind, const Uuid& uuid) const;  // null when this rank has none
  ParamId find(BlockKind kind, const Uuid& uuid, const std::string& name) const;  // throws InternalError

  ConstTensorView value(ParamId id) const;
  TensorView grad(ParamId id);  // empty() when the block is frozen
  bool trainable(ParamId id) const { return block(id.block).trainable; }
  std::int64_t size_bytes() const;  // of all slots of all blocks

 private:
  DType compute_;
  Device device_;
  BlockId next_id_ = 0;
  std::vector<Block> blocks_;  // in order of insertion
};

}  // namespace moecollab
