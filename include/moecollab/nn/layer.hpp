// What a layer is: forward and backward over one batch, with everything backward needs in a value of its own.
#pragma once

#include <concepts>

#include "moecollab/core/step.hpp"
#include "moecollab/nn/batch.hpp"

namespace moecollab::nn {

// Forward fills `saved` (memory from step.arena); backward reads it. Parameter gradients accumulate,
// activation gradients overwrite. `in` of backward is dL/dout, `out` is dL/din.
template <class L>
concept Layer = requires(const L& layer, Step& step, const Batch& batch, ConstTensorView in, TensorView out,
                         typename L::Saved& saved) {
  { layer.forward(step, batch, in, out, saved) } -> std::same_as<void>;
  { layer.backward(step, batch, in, saved, out) } -> std::same_as<void>;
};

}  // namespace moecollab::nn
