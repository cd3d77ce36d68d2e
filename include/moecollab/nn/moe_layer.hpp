// The sparse layer: gate, dispatch to the ranks of the experts, experts, combine; and an optional shared
// expert that works on every token.
#pragma once

#include <cstdint>
#include <optional>

#include "moecollab/core/step.hpp"
#include "moecollab/nn/batch.hpp"
#include "moecollab/nn/dispatch.hpp"
#include "moecollab/nn/experts.hpp"
#include "moecollab/nn/feed_forward.hpp"
#include "moecollab/nn/parallel.hpp"
#include "moecollab/nn/router.hpp"

namespace moecollab::nn {

class MoeLayer {
 public:
  struct Saved {
    Router::Saved routing;
    DispatchPlan plan;
    TensorView expert_in;  // [R,D] in expert order; empty() unless plan.kept: backward fetches rows again
    std::vector<Experts::Saved> experts;  // by chunk
    TensorView returned;  // [num_sent,D] expert outputs in travel order: gate weights never travel
    FeedForward::Saved shared;
  };

  MoeLayer(const ModelConfig& config, std::int64_t layer, const ParamStore& params, const ExpertSlots& slots,
           const Parallel& parallel, std::span<const std::int32_t> fixed_table);

  // x, y [T,D]. sums [2E+2] f64 receives this rank's routing statistics.
  void forward(Step& step, const Batch& batch, const TokenFacts& facts, ConstTensorView x, TensorView sums,
               TensorView y, Saved& saved) const;
  // sums: over all ranks.
  void backward(Step& step, const Batch& batch, const TokenFacts& facts, ConstTensorView dy,
                ConstTensorView x, ConstTensorView sums, const ops::BalanceOptions& balance,
                const Saved& saved, TensorView dx) const;

 private:
  const ModelConfig& config_;
  const ExpertSlots& slots_;
  const Parallel& parallel_;
  Router router_;
  Experts experts_;
  std::optional<FeedForward> shared_;
};

}  // namespace moecollab::nn
