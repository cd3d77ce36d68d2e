#include "moecollab/core/param_store.hpp"

#include <algorithm>
#include <utility>

#include "moecollab/core/device.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/core/random.hpp"

namespace moecollab {

const char* to_string(BlockKind kind) {
  switch (kind) {
    case BlockKind::trunk:
      return "trunk";
    case BlockKind::router:
      return "router";
    case BlockKind::expert:
      return "expert";
  }
  return "?";
}

TensorView Block::part(TensorView slot, std::int32_t index) const {
  if (slot.empty()) return {};
  const Param& param = params.at(static_cast<std::size_t>(index));
  return slot.rows(param.offset, param.offset + param.spec.shape.numel()).reshaped(param.spec.shape);
}

std::int32_t Block::find(const std::string& name) const {
  for (std::size_t i = 0; i < params.size(); ++i)
    if (params[i].spec.name == name) return static_cast<std::int32_t>(i);
  return -1;
}

BlockId ParamStore::add_block(BlockKind kind, const Uuid& uuid, std::span<const ParamSpec> specs,
                              bool trainable) {
  if (find_block(kind, uuid) != nullptr)
    throw InternalError(std::string("a ") + to_string(kind) + " block of " + to_string(uuid) +
                        " exists already");
  Block block;
  block.id = next_id_++;
  block.kind = kind;
  block.uuid = uuid;
  for (const ParamSpec& spec : specs) {
    if (block.find(spec.name) >= 0) throw InternalError("parameter '" + spec.name + "' twice in one block");
    block.params.push_back({spec, block.numel});
    block.numel += (spec.shape.numel() + 15) / 16 * 16;
  }
  const DType accumulator = accumulator_dtype();
  const DType value_dtype = kind == BlockKind::router ? accumulator : compute_;
  block.value_ = Tensor(value_dtype, {block.numel}, device_);
  if (value_dtype != accumulator) block.master_ = Tensor(accumulator, {block.numel}, device_);
  blocks_.push_back(std::move(block));
  set_trainable(blocks_.back().id, trainable);
  return blocks_.back().id;
}

void ParamStore::remove_block(BlockId id) {
  const auto erased = std::erase_if(blocks_, [id](const Block& block) { return block.id == id; });
  if (erased != 1) throw InternalError("no block " + std::to_string(id));
}

void ParamStore::set_trainable(BlockId id, bool trainable) {
  Block& b = block(id);
  if (b.trainable == trainable) return;
  b.trainable = trainable;
  b.optimizer_step = 0;
  const DType accumulator = accumulator_dtype();
  for (Tensor* slot : {&b.grad_, &b.exp_avg_, &b.exp_avg_sq_})
    *slot = trainable ? Tensor(accumulator, {b.numel}, device_) : Tensor();
}

void ParamStore::move_to(Device device) {
  if (device == device_) return;
  device_ = device;
  for (Block& b : blocks_)
    for (Tensor* slot : {&b.value_, &b.master_, &b.grad_, &b.exp_avg_, &b.exp_avg_sq_}) {
      if (slot->empty()) continue;
      Tensor moved(slot->dtype(), slot->shape(), device);
      copy_convert(slot->view(), moved.view());
      *slot = std::move(moved);
    }
}

void ParamStore::initialise(BlockId id, std::uint64_t seed) {
  Block& b = block(id);
  const Tensor drawn(accumulator_dtype(), {b.numel});  // on the host: the same numbers for every device
  for (std::size_t i = 0; i < b.params.size(); ++i) {
    const ParamSpec& spec = b.params[i].spec;
    const TensorView master = b.part(drawn.view(), static_cast<std::int32_t>(i));
    const std::string name = std::string(to_string(b.kind)) + "/" + to_string(b.uuid) + "/" + spec.name;
    if (spec.init.kind == Init::Kind::normal) {
      fill_normal(seed, stream_of(name.c_str()), spec.init.std, master);
      continue;
    }
    const double value = spec.init.kind == Init::Kind::ones ? 1.0 : 0.0;
    for (std::int64_t j = 0; j < master.numel(); ++j) {
      if (master.dtype == DType::f64)
        master.as<double>()[j] = value;
      else
        master.as<float>()[j] = static_cast<float>(value);
    }
  }
  copy_convert(drawn.view(), b.master());
  refresh_value(id);
}

void ParamStore::refresh_value(BlockId id) {
  const Block& b = block(id);
  if (b.has_separate_master()) copy_convert(b.master(), b.value());
}

void ParamStore::zero_grads(Stream& stream) {
  for (Block& b : blocks_)
    if (!b.grad_.empty()) fill_zero(stream, b.grad());
}

const Block& ParamStore::block(BlockId id) const {
  for (const Block& b : blocks_)
    if (b.id == id) return b;
  throw InternalError("no block " + std::to_string(id));
}

Block& ParamStore::block(BlockId id) { return const_cast<Block&>(std::as_const(*this).block(id)); }

const Block* ParamStore::find_block(BlockKind kind, const Uuid& uuid) const {
  for (const Block& b : blocks_)
    if (b.kind == kind && b.uuid == uuid) return &b;
  return nullptr;
}

ParamId ParamStore::find(BlockKind kind, const Uuid& uuid, const std::string& name) const {
  const Block* b = find_block(kind, uuid);
  const std::int32_t index = b == nullptr ? -1 : b->find(name);
  if (index < 0)
    throw InternalError("no parameter '" + name + "' in the " + to_string(kind) + " block of " +
                        to_string(uuid));
  return {b->id, index};
}

ConstTensorView ParamStore::value(ParamId id) const {
  const Block& b = block(id.block);
  return b.part(b.value(), id.index);
}

TensorView ParamStore::grad(ParamId id) {
  const Block& b = block(id.block);
  return b.part(b.grad(), id.index);
}

std::int64_t ParamStore::size_bytes() const {
  std::int64_t bytes = 0;
  for (const Block& b : blocks_)
    bytes += b.value_.size_bytes() * (b.value_.empty() ? 0 : 1) +
             (b.master_.empty() ? 0 : b.master_.size_bytes()) +
             (b.grad_.empty() ? 0 : 3 * b.grad_.size_bytes());
  return bytes;
}

}  // namespace moecollab
