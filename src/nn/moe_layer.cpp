#include "moecollab/nn/moe_layer.hpp"

#include <optional>
#include <string>
#include <utility>

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

namespace {

// For each chunk: its rows of `sent` [num_sent,D] arrive in expert order (in `into` [num_rows,D], or in
// scratch when that is empty()), work(c, in, out) makes as many rows out of them, and those go back to their
// places in `returned` [num_sent,D]. With rows kept and several chunks, the next chunk is on its way
// meanwhile.
template <class Work>
void through_experts(Step& step, const DispatchPlan& plan, const Communicator& group, TensorView sent,
                     TensorView into, TensorView returned, Work&& work) {
  const ArenaScope scope(step.arena);
  const std::size_t num_chunks = plan.chunks.size();
  if (group.size() == 1) {
    for (std::size_t c = 0; c < num_chunks; ++c) {
      const ArenaScope chunk_scope(step.arena);
      work(c, own_rows(plan.chunks[c], sent), own_rows(plan.chunks[c], returned));
    }
    return;
  }
  struct Arrival {
    TensorView rows;
    Event event;
  };
  const bool ahead = plan.kept && num_chunks > 1;
  Stream& exchange = ahead ? step.exchange : step.compute;
  const auto receive = [&](std::size_t c) {
    Arrival arrival{step.arena.tensor(sent.dtype, {plan.chunks[c].num_received, sent.dim(1)}), {}};
    send_rows(step, exchange, plan, plan.chunks[c], sent, group, arrival.rows);
    if (ahead) arrival.event = exchange.record();
    return arrival;
  };
  Arrival next;
  if (ahead) {
    exchange.wait(step.compute.record());
    next = receive(0);
  }
  for (std::size_t c = 0; c < num_chunks; ++c) {
    const DispatchChunk& chunk = plan.chunks[c];
    std::optional<ArenaScope> chunk_scope;
    if (!ahead) chunk_scope.emplace(step.arena);
    const Arrival now = ahead ? next : receive(c);
    if (ahead && c + 1 < num_chunks) next = receive(c + 1);
    step.compute.wait(now.event);
    const Shape rows{chunk.num_rows, sent.dim(1)};
    const TensorView in = into.empty() ? step.arena.tensor(sent.dtype, rows)
                                       : into.rows(chunk.begin, chunk.begin + chunk.num_rows);
    const TensorView out = step.arena.tensor(sent.dtype, rows);
    to_expert_order(step, chunk, now.rows, in);
    work(c, in, out);
    to_receive_order(step, chunk, out, now.rows);
    if (ahead) exchange.wait(step.compute.record());
    return_rows(step, exchange, chunk, now.rows, group, returned);
  }
  if (ahead) step.compute.wait(exchange.record());
}

}  // namespace

// y[t] = sum over k of w[t,k] expert_k(x[t])  (+ shared(x[t]))
void MoeLayer::forward(Step& step, const Batch& batch, const TokenFacts& facts, ConstTensorView x,
                       TensorView sums, TensorView y, Saved& saved) const {
  const Communicator& group = parallel_.experts();
  router_.forward(step, batch, facts, x, sums, saved.routing);
  saved.plan = make_dispatch_plan(step, saved.routing.picks, slots_, parallel_,
                                  {config_.max_rows, step.overlap_chunks,
                                   expert_capacity(config_.capacity_factor, config_.num_experts_per_tok,
                                                   batch.global_tokens, slots_.size()),
                                   batch.max_rank_tokens});
  const DispatchPlan& plan = saved.plan;
  saved.returned = step.arena.tensor(x.dtype, {plan.num_sent, x.dim(1)});
  if (plan.kept) {
    saved.expert_in = step.arena.tensor(x.dtype, {plan.num_rows, x.dim(1)});
    for (const DispatchChunk& chunk : plan.chunks) saved.experts.push_back(experts_.make_saved(step, chunk));
  }
  {
    const ArenaScope scope(step.arena);
    const TensorView sent =
        plan.kept && group.size() == 1 ? saved.expert_in : step.arena.tensor(x.dtype, saved.returned.shape);
    rows_in_travel_order(step, plan, x, sent);
    through_experts(step, plan, group, sent, saved.expert_in, saved.returned,
                    [&](std::size_t c, TensorView in, TensorView out) {
                      const DispatchChunk& chunk = plan.chunks[c];
                      experts_.forward(step, chunk, in,
                                       plan.kept ? saved.experts[c] : experts_.make_saved(step, chunk), out);
                    });
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
  const TensorView d_weights = step.arena.tensor(saved.routing.weights.dtype, saved.routing.weights.shape);
  const TensorView d_returned = step.arena.tensor(x.dtype, saved.returned.shape);
  {
    const PhaseScope phase(step.clock, Phase::combine);
    ops::combine_rows_backward(step.compute, dy, saved.returned, plan.slot_of_pick, plan.order,
                               saved.routing.weights, d_returned, d_weights);
  }
  const TensorView d_sent = step.arena.tensor(x.dtype, saved.returned.shape);
  if (plan.kept) {
    through_experts(step, plan, group, d_returned, {}, d_sent,
                    [&](std::size_t c, TensorView d_out, TensorView d_in) {
                      const DispatchChunk& chunk = plan.chunks[c];
                      experts_.backward(step, chunk, d_out,
                                        saved.expert_in.rows(chunk.begin, chunk.begin + chunk.num_rows),
                                        saved.experts[c], d_in);
                    });
  } else {  // the rows were not kept: fetch them once more
    const ArenaScope rows_scope(step.arena);
    const TensorView sent = step.arena.tensor(x.dtype, saved.returned.shape);
    rows_in_travel_order(step, plan, x, sent);
    through_experts(
        step, plan, group, d_returned, {}, d_sent, [&](std::size_t c, TensorView d_out, TensorView d_in) {
          const DispatchChunk& chunk = plan.chunks[c];
          TensorView in;
          if (group.size() == 1) {
            in = own_rows(chunk, sent);
          } else {
            const TensorView received = step.arena.tensor(x.dtype, {chunk.num_received, x.dim(1)});
            in = step.arena.tensor(x.dtype, {chunk.num_rows, x.dim(1)});
            send_rows(step, step.compute, plan, chunk, sent, group, received);
            to_expert_order(step, chunk, received, in);
          }
          const Experts::Saved hidden = experts_.make_saved(step, chunk);
          experts_.forward(step, chunk, in, hidden, d_in);
          experts_.backward(step, chunk, d_out, in, hidden, d_in);
        });
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
