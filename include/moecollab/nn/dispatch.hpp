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

// The rows this rank receives at once. Without a row budget there is one chunk; with one, a chunk ends where
// the next tile of ops::kRowTile rows of an expert would exceed it.
struct DispatchChunk {
  std::vector<std::int64_t> send_begin, send_rows;  // [ep] ranges of the rows in travel order
  std::vector<std::int64_t> recv_begin, recv_rows;  // [ep]
  std::int64_t num_rows = 0;                        // R
  std::vector<ExpertRows> experts;                  // experts of this rank that have rows here
  TensorView expert_order;   // [R] i32: received row of each row in expert order; empty() if they agree
  TensorView receive_order;  // [R] i32: its inverse
};

struct DispatchPlan {
  std::int64_t num_sent = 0;                // picks of this rank that travel
  std::int64_t num_received = 0;            // rows of all chunks
  std::int64_t num_dropped = 0;             // picks of this rank over capacity
  TensorView order;                         // [num_sent] i32: pick number of each row in travel order
  TensorView slot_of_pick;                  // [T,K] i32: row in travel order of pick (t,k), -1 = none
  std::vector<DispatchChunk> chunks;        // as many on every rank of the group
  std::vector<std::int64_t> rows_per_slot;  // [E] rows each expert gets from this replica
};

struct DispatchLimits {
  std::int64_t max_rows = 0;       // rows of a chunk; 0: no limit
  double capacity_factor = 0.0;    // 0: dropless
  std::int64_t global_tokens = 0;  // valid tokens of the micro-batch over all ranks (for the capacity)
};

// Sorts the picks [T,K] i32 and exchanges the counts: the only wait for other ranks before rows move. Memory
// of the plan is from step.arena. Picks over capacity (in token order over the whole micro-batch) are dropped
// on every rank alike.
DispatchPlan make_dispatch_plan(Step& step, ConstTensorView picks, const ExpertSlots& slots,
                                const Parallel& parallel, const DispatchLimits& limits);

// x [T,D] in token order -> rows [num_sent,D] in travel order.
void rows_in_travel_order(Step& step, const DispatchPlan& plan, ConstTensorView x, TensorView rows);
// all-to-all towards the experts: rows in travel order -> this rank's rows of the chunk in expert order, rows
// [R,D]. With one rank the orders agree and `rows` may be the chunk's part of `sent` itself (see `own_rows`).
void dispatch(Step& step, const DispatchPlan& plan, const DispatchChunk& chunk, ConstTensorView sent,
              const Communicator& experts, TensorView rows);
// all-to-all back: rows in expert order [R,D] -> their places in travel order in `returned` [num_sent,D].
void send_back(Step& step, const DispatchChunk& chunk, ConstTensorView rows, const Communicator& experts,
               TensorView returned);
// With one rank: the part of a tensor in travel order that is the chunk in expert order.
TensorView own_rows(const DispatchChunk& chunk, TensorView in_travel_order);

}  // namespace moecollab::nn
