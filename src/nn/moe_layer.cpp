#include "moecollab/nn/moe_layer.hpp"

#include <string>

#include "moecollab/ops/elementwise.hpp"
#include "moecollab/ops/permute.hpp"

namespace moecollab::nn {

MoeLayer::MoeLayer(const ModelConfig& config, std::int64_t layer, const ParamStore& params,
                   const ExpertSlots& slots, const Parallel& parallel,
                   std::span<const std::int32_t> fixed_table)
    : config_(config),
      slots_(slots),
      parallel_(parallel),
      router_(config, layer, params, slots, fixed_table),
      experts_(layer, params, slots, parallel.expert_rank()) {
  if (config.shared_expert_intermediate_size > 0)
    shared_.emplace("layers." + std::to_string(layer) + ".mlp.shared_expert.", params);
}

// y[t] = sum over k of w[t,k] expert_k(x[t])  (+ shared(x[t]))
void MoeLayer::forward(Step& step, const Batch& batch, const TokenFacts& facts, ConstTensorView x,
                       TensorView sums, TensorView y, Saved& saved) const {
  const Communicator& group = parallel_.experts();
  router_.forward(step, batch, facts, x, sums, saved.routing);
  saved.plan = make_dispatch_plan(
      step, saved.routing.picks, slots_, parallel_,
      {config_.max_rows, batch.global_tokens > 0 ? config_.capacity_factor : 0.0, batch.global_tokens});
  const DispatchPlan& plan = saved.plan;
  const bool whole = plan.chunks.size() == 1, alone = group.size() == 1;
  saved.returned = step.arena.tensor(x.dtype, {plan.num_sent, x.dim(1)});
  if (whole) {
    saved.experts = experts_.make_saved(step, plan.chunks[0]);
    saved.expert_in = step.arena.tensor(x.dtype, {plan.num_received, x.dim(1)});
  }
  {
    const ArenaScope scope(step.arena);
    const TensorView sent =
        whole && alone ? saved.expert_in : step.arena.tensor(x.dtype, saved.returned.shape);
    rows_in_travel_order(step, plan, x, sent);
    for (const DispatchChunk& chunk : plan.chunks) {
      const ArenaScope chunk_scope(step.arena);
      const Shape rows{chunk.num_rows, x.dim(1)};
      const TensorView in = whole   ? saved.expert_in
                            : alone ? own_rows(chunk, sent)
                                    : step.arena.tensor(x.dtype, rows);
      const TensorView out = alone ? own_rows(chunk, saved.returned) : step.arena.tensor(x.dtype, rows);
      dispatch(step, plan, chunk, sent, group, in);
      experts_.forward(step, chunk, in, whole ? saved.experts : experts_.make_saved(step, chunk), out);
      send_back(step, chunk, out, group, saved.returned);
    }
  }
  {
    const PhaseScope phase(step.clock, Phase::combine);
    ops::combine_rows_forward(step.compute, saved.returned, plan.slot_of_pick, saved.routing.weights, y);
  }
  if (!shared_) return;
  const TensorView shared_out = step.arena.tensor(y.dtype, y.shape);
  shared_->forward(step, batch, x, shared_out, saved.shared);
  ops::add(step.compute, shared_out, y);
}

// d row(t,k) = w[t,k] dy[t]; d w[t,k] = <dy[t], row(t,k)>; dx[t] = sum over k of d expert_in(t,k), plus the
// gate's and the shared expert's share.
void MoeLayer::backward(Step& step, const Batch& batch, const TokenFacts& facts, ConstTensorView dy,
                        ConstTensorView x, ConstTensorView sums, const ops::BalanceOptions& balance,
                        const Saved& saved, TensorView dx) const {
  const ArenaScope scope(step.arena);
  const Communicator& group = parallel_.experts();
  const DispatchPlan& plan = saved.plan;
  const bool whole = plan.chunks.size() == 1, alone = group.size() == 1;
  const TensorView d_weights = step.arena.tensor(saved.routing.weights.dtype, saved.routing.weights.shape);
  const TensorView d_returned = step.arena.tensor(x.dtype, saved.returned.shape);
  {
    const PhaseScope phase(step.clock, Phase::combine);
    ops::combine_rows_backward(step.compute, dy, saved.returned, plan.slot_of_pick, plan.order,
                               saved.routing.weights, d_returned, d_weights);
  }
  const TensorView d_sent = step.arena.tensor(x.dtype, saved.returned.shape);
  {
    const ArenaScope rows_scope(step.arena);
    TensorView sent;
    if (!whole) {  // the rows were not kept: fetch them once more
      sent = step.arena.tensor(x.dtype, saved.returned.shape);
      rows_in_travel_order(step, plan, x, sent);
    }
    for (const DispatchChunk& chunk : plan.chunks) {
      const ArenaScope chunk_scope(step.arena);
      const Shape rows{chunk.num_rows, x.dim(1)};
      const TensorView d_out = alone ? own_rows(chunk, d_returned) : step.arena.tensor(x.dtype, rows);
      const TensorView d_in = alone ? own_rows(chunk, d_sent) : step.arena.tensor(x.dtype, rows);
      TensorView in = saved.expert_in;
      Experts::Saved hidden = saved.experts;
      if (!whole) {
        in = alone ? own_rows(chunk, sent) : step.arena.tensor(x.dtype, rows);
        hidden = experts_.make_saved(step, chunk);
        dispatch(step, plan, chunk, sent, group, in);
        experts_.forward(step, chunk, in, hidden, d_in);
      }
      dispatch(step, plan, chunk, d_returned, group, d_out);
      experts_.backward(step, chunk, d_out, in, hidden, d_in);
      send_back(step, chunk, d_in, group, d_sent);
    }
  }
  {
    const PhaseScope phase(step.clock, Phase::permute);
    ops::dispatch_rows_backward(step.compute, d_sent, plan.slot_of_pick, dx);
  }
  router_.backward(step, batch, facts, x, d_weights, sums, balance, saved.routing, dx);
  if (!shared_) return;
  const TensorView d_shared = step.arena.tensor(dx.dtype, dx.shape);
  shared_->backward(step, batch, dy, x, saved.shared, d_shared);
  ops::add(step.compute, d_shared, dx);
}

}  // namespace moecollab::nn
