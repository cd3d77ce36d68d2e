// Tokens to experts and back: a plan (a value), and the moves that read it. Travel order sorts picks by (rank
// of the expert, slot); expert order on a rank sorts rows by (slot, source rank, order at the source). Every
// rank of the expert-parallel group joins every exchange, with zero rows where it has none.
#pragma once

#include <cstdint>
#include <vector>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/step.hpp"
#include "moecollab/nn/parallel.hpp"

namespace moecollab::nn {

// A run of rows of one expert in a chunk's expert order.
struct ExpertRows {
  std::int32_t slot = 0;  // position in ExpertSlots
  std::int64_t begin = 0, end = 0;
};

// Rows that travel together: a run of whole tiles of ops::kRowTile of the receiver's expert order.
struct DispatchChunk {
  std::vector<std::int64_t> send_begin, send_rows;  // [ep] ranges of the rows in travel order
  std::vector<std::int64_t> recv_begin, recv_rows;  // [ep]
  std::int64_t num_received = 0;                    // rows that arrive, in (source, slot) order
  std::int64_t begin = 0, num_rows = 0;             // R rows from `begin` on in this rank's expert order
  std::vector<ExpertRows> experts;                  // experts of this rank that have rows here
  TensorView expert_order;   // [R] i32: received row of each row in expert order; empty() if they agree
  TensorView receive_order;  // [num_received] i32: its inverse; -1 in both: a row of zeros
};

struct DispatchPlan {
  std::int64_t num_sent = 0;          // rows of this rank that travel
  std::int64_t num_rows = 0;          // rows of all chunks
  bool kept = true;                   // within the row budget on every rank: backward finds its rows kept
  TensorView order;                   // [num_sent] i32: pick number of each row in travel order, -1: zeros
  TensorView slot_of_pick;            // [T,K] i32: row in travel order of pick (t,k), -1 = none
  std::vector<DispatchChunk> chunks;  // as many on every rank of the group
};

struct DispatchLimits {
  std::int64_t max_rows = 0;         // rows of a chunk; 0: no limit
  std::int64_t overlap_chunks = 1;   // wanted number of chunks when rows travel between ranks
  std::int64_t capacity = 0;         // picks an expert takes of the global micro-batch; 0: dropless
  std::int64_t max_rank_tokens = 0;  // the most tokens that a rank has (read with a capacity only)
};

// Picks an expert takes of a global micro-batch of `global_tokens` valid tokens: ceil(factor K T / E); 0
// (dropless) without a capacity factor and in generation, where global_tokens is 0.
std::int64_t expert_capacity(double capacity_factor, std::int64_t top_k, std::int64_t global_tokens,
                             std::int64_t num_experts);

// Sorts the picks [T,K] i32 and exchanges the counts: the only wait of the host before rows move. Picks over
// capacity (in token order over the whole micro-batch) are dropped on every rank alike. With a capacity on a
// CUDA device nothing waits, unless the rows exceed max_rows: every expert then has as many rows as it can
// take, and what is not filled is zeros. Memory of the plan is from step.arena.
DispatchPlan make_dispatch_plan(Step& step, ConstTensorView picks, const ExpertSlots& slots,
                                const Parallel& parallel, const DispatchLimits& limits);

// x [T,D] in token order -> rows [num_sent,D] in travel order.
void rows_in_travel_order(Step& step, const DispatchPlan& plan, ConstTensorView x, TensorView rows);

// all-to-all towards the experts, queued on `stream`: rows [num_sent,D] in travel order -> received
// [num_received,D].
void send_rows(Step& step, Stream& stream, const DispatchPlan& plan, const DispatchChunk& chunk,
               ConstTensorView sent, const Communicator& experts, TensorView received);
// received [num_received,D] -> rows [R,D] in expert order.
void to_expert_order(Step& step, const DispatchChunk& chunk, ConstTensorView received, TensorView rows);
// rows [R,D] in expert order -> [num_received,D] as they were received.
void to_receive_order(Step& step, const DispatchChunk& chunk, ConstTensorView rows, TensorView received);
// all-to-all back, queued on `stream`: rows as they were received -> their places in `returned` [num_sent,D].
void return_rows(Step& step, Stream& stream, const DispatchChunk& chunk, ConstTensorView received,
                 const Communicator& experts, TensorView returned);
// With one rank: the part of a tensor in travel order that is the chunk in expert order.
TensorView own_rows(const DispatchChunk& chunk, TensorView in_travel_order);

}  // namespace moecollab::nn
