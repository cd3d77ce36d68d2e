#include "moecollab/nn/dispatch.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "moecollab/core/device.hpp"
#include "moecollab/ops/experts.hpp"
#include "moecollab/ops/permute.hpp"

namespace moecollab::nn {

namespace {

// Experts in travel order: by owning rank, then by slot. first_key[r] is where the experts of rank r start.
struct TravelOrder {
  std::vector<std::int32_t> key_of_slot, slot_of_key;
  std::vector<std::int64_t> first_key;
  std::int64_t num_keys(std::int64_t rank) const {
    return first_key[static_cast<std::size_t>(rank) + 1] - first_key[static_cast<std::size_t>(rank)];
  }
};

TravelOrder travel_order(const ExpertSlots& slots) {
  TravelOrder travel;
  const auto list = slots.slots();
  travel.slot_of_key.resize(list.size());
  std::iota(travel.slot_of_key.begin(), travel.slot_of_key.end(), 0);
  std::stable_sort(travel.slot_of_key.begin(), travel.slot_of_key.end(), [&](std::int32_t a, std::int32_t b) {
    return list[static_cast<std::size_t>(a)].rank < list[static_cast<std::size_t>(b)].rank;
  });
  travel.key_of_slot.resize(list.size());
  travel.first_key.assign(static_cast<std::size_t>(slots.expert_parallel_size()) + 1, 0);
  for (std::size_t key = 0; key < list.size(); ++key) {
    const auto slot = static_cast<std::size_t>(travel.slot_of_key[key]);
    travel.key_of_slot[slot] = static_cast<std::int32_t>(key);
    ++travel.first_key[static_cast<std::size_t>(list[slot].rank) + 1];
  }
  std::partial_sum(travel.first_key.begin(), travel.first_key.end(), travel.first_key.begin());
  return travel;
}

// counts(source, key): picks of expert `key` on rank `source` of this replica.
struct CountMatrix {
  std::vector<std::int64_t> counts;
  std::int64_t num_sources = 0, num_keys = 0;
  std::int64_t operator()(std::int64_t source, std::int64_t key) const {
    return counts[static_cast<std::size_t>(source * num_keys + key)];
  }
  std::int64_t total(std::int64_t key) const {
    std::int64_t sum = 0;
    for (std::int64_t s = 0; s < num_sources; ++s) sum += (*this)(s, key);
    return sum;
  }
};

// Ends of the chunks of one receiver as positions in its expert order.
std::vector<std::int64_t> chunk_ends(const CountMatrix& counts, std::int64_t first_key, std::int64_t end_key,
                                     std::int64_t max_rows) {
  std::vector<std::int64_t> ends;
  std::int64_t position = 0, in_chunk = 0;
  for (std::int64_t key = first_key; key < end_key; ++key) {
    for (std::int64_t left = counts.total(key); left > 0;) {
      const std::int64_t tile = std::min(left, ops::kRowTile);
      if (max_rows > 0 && in_chunk > 0 && in_chunk + tile > max_rows) {
        ends.push_back(position);
        in_chunk = 0;
      }
      position += tile;
      in_chunk += tile;
      left -= tile;
    }
  }
  ends.push_back(position);
  return ends;
}

// Rows of (source, key) that stand in [begin, end) of the receiver's expert order, as [begin, end) within the
// source's rows of key.
struct Overlap {
  std::int64_t begin = 0, end = 0;
  std::int64_t size() const { return end - begin; }
};

Overlap overlap(std::int64_t position, std::int64_t count, std::int64_t begin, std::int64_t end) {
  const std::int64_t lo = std::clamp<std::int64_t>(begin - position, 0, count);
  const std::int64_t hi = std::clamp<std::int64_t>(end - position, 0, count);
  return {lo, std::max(lo, hi)};
}

// Where this rank's rows for each receiver's chunk lie in travel order. They are one run: a chunk is a run of
// the expert order.
void plan_sends(const CountMatrix& counts, const TravelOrder& travel, std::int64_t me,
                const std::vector<std::vector<std::int64_t>>& ends, std::vector<DispatchChunk>& chunks) {
  const auto ranks = static_cast<std::int64_t>(ends.size());
  std::int64_t travel_begin = 0;  // of (receiver, key) in my travel order
  for (std::int64_t r = 0; r < ranks; ++r) {
    const auto ri = static_cast<std::size_t>(r);
    std::int64_t position = 0;  // of (key, source 0) in the receiver's expert order
    for (std::int64_t key = travel.first_key[ri]; key < travel.first_key[ri + 1]; ++key) {
      std::int64_t mine = position;
      for (std::int64_t s = 0; s < me; ++s) mine += counts(s, key);
      for (std::size_t c = 0; c < chunks.size(); ++c) {
        const std::int64_t begin = c == 0 ? 0 : ends[ri][std::min(c, ends[ri].size()) - 1];
        const std::int64_t end = ends[ri][std::min(c + 1, ends[ri].size()) - 1];
        const Overlap rows = overlap(mine, counts(me, key), begin, end);
        if (rows.size() == 0) continue;
        if (chunks[c].send_rows[ri] == 0) chunks[c].send_begin[ri] = travel_begin + rows.begin;
        chunks[c].send_rows[ri] += rows.size();
      }
      position += counts.total(key);
      travel_begin += counts(me, key);
    }
  }
}

// What this rank receives in each chunk.
void plan_receives(const CountMatrix& counts, const TravelOrder& travel, std::int64_t me,
                   const std::vector<std::int64_t>& ends, std::vector<DispatchChunk>& chunks) {
  const auto my = static_cast<std::size_t>(me);
  const std::int64_t first = travel.first_key[my], last = travel.first_key[my + 1];
  for (std::size_t c = 0; c < chunks.size(); ++c) {
    DispatchChunk& chunk = chunks[c];
    chunk.begin = c == 0 ? 0 : ends[std::min(c, ends.size()) - 1];
    const std::int64_t end = ends[std::min(c + 1, ends.size()) - 1];
    chunk.num_rows = chunk.num_received = end - chunk.begin;
    std::int64_t position = 0, placed = 0;
    for (std::int64_t key = first; key < last; ++key) {
      const std::int64_t expert_begin = placed;
      for (std::int64_t s = 0; s < counts.num_sources; ++s) {
        const std::int64_t rows = overlap(position, counts(s, key), chunk.begin, end).size();
        chunk.recv_rows[static_cast<std::size_t>(s)] += rows;
        position += counts(s, key);
        placed += rows;
      }
      if (placed > expert_begin)
        chunk.experts.push_back({travel.slot_of_key[static_cast<std::size_t>(key)], expert_begin, placed});
    }
    std::exclusive_scan(chunk.recv_rows.begin(), chunk.recv_rows.end(), chunk.recv_begin.begin(),
                        std::int64_t{0});
  }
}

// How received order (source, slot) turns into expert order (slot, source); nothing to do with one source.
void make_orders(Step& step, ConstTensorView counts, const TravelOrder& travel, std::int64_t me,
                 std::int64_t rows_per_block, std::int64_t rows_per_expert, DispatchChunk& chunk) {
  if (counts.dim(0) == 1) return;
  const auto my = static_cast<std::size_t>(me);
  chunk.expert_order = step.arena.tensor(DType::i32, {chunk.num_rows});
  chunk.receive_order = step.arena.tensor(DType::i32, {chunk.num_received});
  ops::received_orders(step.compute, counts,
                       {travel.first_key[my], travel.first_key[my + 1], chunk.begin,
                        chunk.begin + chunk.num_rows, rows_per_block, rows_per_expert},
                       chunk.expert_order, chunk.receive_order);
}

// Rows of a chunk at most: the budget, and what cuts the receiver's rows into the wanted number of chunks.
std::int64_t chunk_rows(std::int64_t received, const DispatchLimits& limits, bool travels, bool kept) {
  if (!kept) return limits.max_rows;
  if (!travels || limits.overlap_chunks <= 1) return 0;
  const std::int64_t rows = (received + limits.overlap_chunks - 1) / limits.overlap_chunks;
  return std::max<std::int64_t>((rows + ops::kRowTile - 1) / ops::kRowTile, 1) * ops::kRowTile;
}

// Every rank's rows are as many as its experts can take, whatever the tokens chose, so the host knows them
// all: rows_per_block of each pair of source and expert travel, and an expert works on rows_per_expert.
DispatchPlan plan_of_constant_rows(Step& step, DispatchPlan plan, const TravelOrder& travel,
                                   ConstTensorView counts, std::int64_t me, std::int64_t rows_per_block,
                                   std::int64_t rows_per_expert) {
  const auto ranks = travel.first_key.size() - 1;
  const std::int64_t keys = travel.num_keys(me);
  DispatchChunk chunk;
  for (std::size_t r = 0; r < ranks; ++r) {
    chunk.send_begin.push_back(travel.first_key[r] * rows_per_block);
    chunk.send_rows.push_back(travel.num_keys(static_cast<std::int64_t>(r)) * rows_per_block);
    chunk.recv_begin.push_back(static_cast<std::int64_t>(r) * keys * rows_per_block);
    chunk.recv_rows.push_back(keys * rows_per_block);
  }
  chunk.num_received = static_cast<std::int64_t>(ranks) * keys * rows_per_block;
  chunk.num_rows = plan.num_rows = keys * rows_per_expert;
  for (std::int64_t key = 0; key < keys && rows_per_expert > 0; ++key)
    chunk.experts.push_back(
        {travel.slot_of_key[static_cast<std::size_t>(travel.first_key[static_cast<std::size_t>(me)] + key)],
         key * rows_per_expert, (key + 1) * rows_per_expert});
  make_orders(step, counts, travel, me, rows_per_block, rows_per_expert, chunk);
  plan.num_sent = plan.order.dim(0);
  plan.chunks.push_back(chunk);
  return plan;
}

}  // namespace

std::int64_t expert_capacity(double capacity_factor, std::int64_t top_k, std::int64_t global_tokens,
                             std::int64_t num_experts) {
  if (capacity_factor <= 0.0 || global_tokens == 0) return 0;
  return static_cast<std::int64_t>(
      std::ceil(capacity_factor * static_cast<double>(top_k) * static_cast<double>(global_tokens) /
                static_cast<double>(num_experts)));
}

DispatchPlan make_dispatch_plan(Step& step, ConstTensorView picks, const ExpertSlots& slots,
                                const Parallel& parallel, const DispatchLimits& limits) {
  const PhaseScope phase(step.clock, Phase::permute);
  const std::int64_t num_picks = picks.numel(), num_experts = slots.size();
  const TravelOrder travel = travel_order(slots);
  const Communicator& group = parallel.experts();
  const std::int64_t me = group.rank();
  const auto ranks = static_cast<std::size_t>(group.size());
  const bool capped = limits.capacity > 0;

  // Rows when every expert takes all it can: constant, so that nothing has to wait for the counts.
  const std::int64_t rows_per_block = std::min(limits.capacity, limits.max_rank_tokens);
  const std::int64_t rows_per_expert = std::min(limits.capacity, group.size() * rows_per_block);
  std::int64_t most_keys = 0;
  for (std::int64_t r = 0; r < group.size(); ++r) most_keys = std::max(most_keys, travel.num_keys(r));
  const bool constant = capped && step.compute.device() == Device::cuda &&
                        (limits.max_rows == 0 || most_keys * rows_per_expert <= limits.max_rows);

  DispatchPlan plan;
  plan.order = step.arena.tensor(DType::i32, {constant ? num_experts * rows_per_block : num_picks});
  plan.slot_of_pick = step.arena.tensor(DType::i32, picks.shape);
  const TensorView sorted = step.arena.tensor(DType::i64, {num_experts});
  const Communicator& counted = capped ? parallel.world() : group;
  const TensorView all = step.arena.tensor(DType::i64, {counted.size(), num_experts});
  const std::int64_t first_source = capped ? parallel.replica() * group.size() : 0;
  const ConstTensorView of_group = all.rows(first_source, first_source + group.size());
  {
    const ArenaScope scope(step.arena);
    const TensorView order = capped ? step.arena.tensor(DType::i32, {num_picks}) : plan.order;
    ops::sort_picks(step.compute, picks, travel.key_of_slot, 0, {}, order, plan.slot_of_pick, sorted);
  }
  {
    const PhaseScope exchange(step.clock, Phase::all_to_all);
    counted.all_gather(step.compute, sorted.reshaped({1, num_experts}), all);
  }
  if (capped) {
    ops::apply_capacity(step.compute, limits.capacity, all);
    const TensorView kept = all.rows(first_source + me, first_source + me + 1).reshaped({num_experts});
    ops::sort_picks(step.compute, picks, travel.key_of_slot, constant ? rows_per_block : 0, kept, plan.order,
                    plan.slot_of_pick, sorted);
  }
  if (constant)
    return plan_of_constant_rows(step, std::move(plan), travel, of_group, me, rows_per_block,
                                 rows_per_expert);

  const PhaseScope wait(step.clock, Phase::all_to_all);
  const ConstTensorView on_host = read_back(step.compute, of_group);
  const auto* data = on_host.as<std::int64_t>();
  const CountMatrix counts{{data, data + on_host.numel()}, group.size(), num_experts};
  for (std::int64_t key = 0; key < num_experts; ++key) plan.num_sent += counts(me, key);
  plan.order = plan.order.rows(0, plan.num_sent);

  std::vector<std::int64_t> received(ranks, 0);
  for (std::size_t r = 0; r < ranks; ++r) {
    for (std::int64_t key = travel.first_key[r]; key < travel.first_key[r + 1]; ++key)
      received[r] += counts.total(key);
    plan.kept = plan.kept && (limits.max_rows == 0 || received[r] <= limits.max_rows);
  }
  std::vector<std::vector<std::int64_t>> ends;
  std::size_t num_chunks = 1;
  for (std::size_t r = 0; r < ranks; ++r) {
    ends.push_back(chunk_ends(counts, travel.first_key[r], travel.first_key[r + 1],
                              chunk_rows(received[r], limits, ranks > 1, plan.kept)));
    num_chunks = std::max(num_chunks, ends.back().size());
  }
  DispatchChunk empty;
  empty.send_begin = empty.send_rows = empty.recv_begin = empty.recv_rows =
      std::vector<std::int64_t>(ranks, 0);
  plan.chunks.assign(num_chunks, empty);
  plan_sends(counts, travel, me, ends, plan.chunks);
  plan_receives(counts, travel, me, ends[static_cast<std::size_t>(me)], plan.chunks);
  for (DispatchChunk& chunk : plan.chunks) {
    make_orders(step, of_group, travel, me, 0, 0, chunk);
    plan.num_rows += chunk.num_rows;
  }
  return plan;
}

void rows_in_travel_order(Step& step, const DispatchPlan& plan, ConstTensorView x, TensorView rows) {
  const PhaseScope phase(step.clock, Phase::permute);
  ops::gather_rows(step.compute, x, plan.order, plan.slot_of_pick.dim(1), rows);
}

TensorView own_rows(const DispatchChunk& chunk, TensorView in_travel_order) {
  return in_travel_order.rows(chunk.send_begin[0], chunk.send_begin[0] + chunk.send_rows[0]);
}

void send_rows(Step& step, Stream& stream, const DispatchPlan& plan, const DispatchChunk& chunk,
               ConstTensorView sent, const Communicator& experts, TensorView received) {
  const PhaseScope phase(step.clock, Phase::all_to_all);
  experts.all_to_all_rows(stream, sent.rows(0, plan.num_sent), received,
                          {chunk.send_begin, chunk.send_rows, chunk.recv_begin, chunk.recv_rows});
}

void to_expert_order(Step& step, const DispatchChunk& chunk, ConstTensorView received, TensorView rows) {
  const PhaseScope phase(step.clock, Phase::permute);
  ops::gather_rows(step.compute, received, chunk.expert_order, 1, rows);
}

void to_receive_order(Step& step, const DispatchChunk& chunk, ConstTensorView rows, TensorView received) {
  const PhaseScope phase(step.clock, Phase::permute);
  ops::gather_rows(step.compute, rows, chunk.receive_order, 1, received);
}

void return_rows(Step& step, Stream& stream, const DispatchChunk& chunk, ConstTensorView received,
                 const Communicator& experts, TensorView returned) {
  const PhaseScope phase(step.clock, Phase::all_to_all);
  experts.all_to_all_rows(stream, received, returned,
                          {chunk.recv_begin, chunk.recv_rows, chunk.send_begin, chunk.send_rows});
}

}  // namespace moecollab::nn
