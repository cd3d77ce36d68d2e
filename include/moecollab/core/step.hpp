// What every layer's forward and backward is given.
#pragma once

#include <concepts>
#include <cstdint>

#include "moecollab/core/arena.hpp"
#include "moecollab/core/param_store.hpp"
#include "moecollab/core/phase.hpp"
#include "moecollab/core/stream.hpp"

namespace moecollab {

struct Step {
  Stream& compute;
  Stream& transfer;
  Arena& arena;
  ParamStore& params;
  PhaseClock& clock;
  std::uint64_t random_key = 0;
};

// Forward fills `saved`; backward reads it. Parameter gradients accumulate, activation gradients overwrite.
template <class L>
concept Layer = requires(const L& layer, Step& step, ConstTensorView in, TensorView out,
                         typename L::Saved& saved) {
  { layer.forward(step, in, out, saved) } -> std::same_as<void>;
  { layer.backward(step, in, saved, out) } -> std::same_as<void>;  // in = dy, out = dx
};

}  // namespace moecollab
