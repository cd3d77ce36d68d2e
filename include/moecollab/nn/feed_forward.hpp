// The dense SwiGLU feed-forward: dense layers and the shared expert.
#pragma once

#include <string>

#include "moecollab/core/step.hpp"
#include "moecollab/nn/batch.hpp"

namespace moecollab::nn {

class FeedForward {
 public:
  struct Saved {
    TensorView gate, up;  // [T,F] pre-activations
  };

  // Parameters <prefix>{gate,up,down}_proj.weight of the trunk.
  FeedForward(const std::string& prefix, const ParamStore& params);

  void forward(Step& step, const Batch& batch, ConstTensorView x, TensorView y, Saved& saved) const;
  void backward(Step& step, const Batch& batch, ConstTensorView dy, ConstTensorView x, const Saved& saved,
                TensorView dx) const;

 private:
  ParamId gate_, up_, down_;
};

}  // namespace moecollab::nn
