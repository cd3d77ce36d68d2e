#include "moecollab/nn/dispatch.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "moecollab/ops/elementwise.hpp"
#include "moecollab/ops/experts.hpp"
#include "moecollab/ops/permute.hpp"
#include "moecollab/ops/route_fixed.hpp"

namespace moecollab::nn {

namespace {

// Experts in travel order: by owning rank, then by slot. first_key[r] is where the experts of rank r start.
struct TravelOrder {
  std::vector<std::int32_t> key_of_slot, slot_of_key;
  std::vector<std::int64_t> first_key;
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

CountMatrix gather_counts(Step& step, TensorView counts, const Communicator& group) {
  const ArenaScope scope(step.arena);
  const std::int64_t keys = counts.dim(0);
  const TensorView all = step.arena.tensor(DType::i64, {group.size(), keys});
  const PhaseScope phase(step.clock, Phase::all_to_all);
  group.all_gather(step.compute, counts.reshaped({1, keys}), all);
  step.compute.synchronize();
  const auto* data = all.as<std::int64_t>();
  return {{data, data + all.numel()}, group.size(), keys};
}

// Cuts the counts of all ranks of the job down to the capacity: the first C picks of each expert in (rank,
// token) order, which is token order over the global micro-batch.
void apply_capacity(CountMatrix& world, std::int64_t capacity) {
  for (std::int64_t key = 0; key < world.num_keys; ++key) {
    std::int64_t left = capacity;
    for (std::int64_t s = 0; s < world.num_sources; ++s) {
      auto& count = world.counts[static_cast<std::size_t>(s * world.num_keys + key)];
      count = std::min(count, left);
      left -= count;
    }
  }
}

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

// What this rank receives in each chunk, and how received order (source, slot) turns into expert order (slot,
// source).
void plan_receives(Step& step, const CountMatrix& counts, const TravelOrder& travel, std::int64_t me,
                   const std::vector<std::int64_t>& ends, std::vector<DispatchChunk>& chunks) {
  const std::int64_t sources = counts.num_sources;
  const auto my = static_cast<std::size_t>(me);
  const std::int64_t first = travel.first_key[my], last = travel.first_key[my + 1];
  for (std::size_t c = 0; c < chunks.size(); ++c) {
    DispatchChunk& chunk = chunks[c];
    const std::int64_t begin = c == 0 ? 0 : ends[std::min(c, ends.size()) - 1];
    const std::int64_t end = ends[std::min(c + 1, ends.size()) - 1];
    chunk.num_rows = end - begin;
    std::vector<std::int64_t> rows;  // [keys of this rank, sources]
    std::int64_t position = 0, placed = 0;
    for (std::int64_t key = first; key < last; ++key) {
      const std::int64_t expert_begin = placed;
      for (std::int64_t s = 0; s < sources; ++s) {
        rows.push_back(overlap(position, counts(s, key), begin, end).size());
        chunk.recv_rows[static_cast<std::size_t>(s)] += rows.back();
        position += counts(s, key);
        placed += rows.back();
      }
      if (placed > expert_begin)
        chunk.experts.push_back({travel.slot_of_key[static_cast<std::size_t>(key)], expert_begin, placed});
    }
    std::exclusive_scan(chunk.recv_rows.begin(), chunk.recv_rows.end(), chunk.recv_begin.begin(),
                        std::int64_t{0});
    if (sources == 1) continue;
    chunk.expert_order = step.arena.tensor(DType::i32, {chunk.num_rows});
    chunk.receive_order = step.arena.tensor(DType::i32, {chunk.num_rows});
    auto* expert_order = chunk.expert_order.as<std::int32_t>();
    auto* receive_order = chunk.receive_order.as<std::int32_t>();
    std::vector<std::int64_t> next = chunk.recv_begin;
    std::int64_t row = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::int64_t& from = next[i % static_cast<std::size_t>(sources)];
      for (std::int64_t j = 0; j < rows[i]; ++j, ++row, ++from) {
        expert_order[row] = static_cast<std::int32_t>(from);
        receive_order[from] = static_cast<std::int32_t>(row);
      }
    }
  }
}

}  // namespace

DispatchPlan make_dispatch_plan(Step& step, ConstTensorView picks, const ExpertSlots& slots,
                                const Parallel& parallel, const DispatchLimits& limits) {
  const PhaseScope phase(step.clock, Phase::permute);
  const std::int64_t num_picks = picks.numel(), num_experts = slots.size();
  const TravelOrder travel = travel_order(slots);
  const Communicator& group = parallel.experts();
  DispatchPlan plan;
  plan.order = step.arena.tensor(DType::i32, {num_picks});
  plan.slot_of_pick = step.arena.tensor(DType::i32, picks.shape);
  const TensorView sorted = step.arena.tensor(DType::i64, {num_experts});
  ops::sort_picks(step.compute, picks, travel.key_of_slot, plan.order, plan.slot_of_pick, sorted);

  const bool capped = limits.capacity_factor > 0.0;
  CountMatrix counts = gather_counts(step, sorted, capped ? parallel.world() : group);
  if (capped) {
    const auto top_k = static_cast<double>(picks.dim(1));
    apply_capacity(counts, static_cast<std::int64_t>(std::ceil(limits.capacity_factor * top_k *
                                                               static_cast<double>(limits.global_tokens) /
                                                               static_cast<double>(num_experts))));
    const auto mine = counts.counts.begin() + parallel.world().rank() * num_experts;
    const std::vector<std::int64_t> kept(mine, mine + num_experts);
    const ArenaScope scope(step.arena);
    const TensorView left = step.arena.tensor(DType::i32, picks.shape);
    std::memcpy(left.data, picks.data, static_cast<std::size_t>(picks.size_bytes()));
    ops::drop_picks(step.compute, plan.order, sorted, kept, left);
    for (std::int64_t key = 0; key < num_experts; ++key)
      plan.num_dropped += sorted.as<std::int64_t>()[key] - kept[static_cast<std::size_t>(key)];
    ops::sort_picks(step.compute, left, travel.key_of_slot, plan.order, plan.slot_of_pick, sorted);
    const std::int64_t begin = parallel.replica() * group.size() * num_experts;
    counts = {{counts.counts.begin() + begin, counts.counts.begin() + begin + group.size() * num_experts},
              group.size(),
              num_experts};
  }

  plan.rows_per_slot.resize(static_cast<std::size_t>(num_experts));
  for (std::int64_t key = 0; key < num_experts; ++key) {
    plan.rows_per_slot[static_cast<std::size_t>(travel.slot_of_key[static_cast<std::size_t>(key)])] =
        counts.total(key);
    plan.num_sent += counts(group.rank(), key);
  }
  plan.order = plan.order.rows(0, plan.num_sent);

  const auto ranks = static_cast<std::size_t>(group.size());
  std::vector<std::vector<std::int64_t>> ends;
  std::size_t num_chunks = 1;
  for (std::size_t r = 0; r < ranks; ++r) {
    ends.push_back(chunk_ends(counts, travel.first_key[r], travel.first_key[r + 1], limits.max_rows));
    num_chunks = std::max(num_chunks, ends.back().size());
  }
  DispatchChunk empty;
  empty.send_begin = empty.send_rows = empty.recv_begin = empty.recv_rows =
      std::vector<std::int64_t>(ranks, 0);
  plan.chunks.assign(num_chunks, empty);
  plan_sends(counts, travel, group.rank(), ends, plan.chunks);
  plan_receives(step, counts, travel, group.rank(), ends[static_cast<std::size_t>(group.rank())],
                plan.chunks);
  for (const DispatchChunk& chunk : plan.chunks) plan.num_received += chunk.num_rows;
  return plan;
}

void rows_in_travel_order(Step& step, const DispatchPlan& plan, ConstTensorView x, TensorView rows) {
  const PhaseScope phase(step.clock, Phase::permute);
  ops::gather_rows(step.compute, x, plan.order, plan.slot_of_pick.dim(1), rows);
}

TensorView own_rows(const DispatchChunk& chunk, TensorView in_travel_order) {
  return in_travel_order.rows(chunk.send_begin[0], chunk.send_begin[0] + chunk.send_rows[0]);
}

namespace {
// One rank: the exchange is a copy, or nothing when both sides are the same memory.
void copy_unless_same(Step& step, ConstTensorView from, TensorView to) {
  const PhaseScope phase(step.clock, Phase::permute);
  if (from.data != to.data) ops::cast(step.compute, from, to);
}
}  // namespace

void dispatch(Step& step, const DispatchPlan& plan, const DispatchChunk& chunk, ConstTensorView sent,
              const Communicator& experts, TensorView rows) {
  if (experts.size() == 1)
    return copy_unless_same(step, sent.rows(chunk.send_begin[0], chunk.send_begin[0] + chunk.send_rows[0]),
                            rows);
  const ArenaScope scope(step.arena);
  const TensorView received = step.arena.tensor(sent.dtype, rows.shape);
  {
    const PhaseScope phase(step.clock, Phase::all_to_all);
    experts.all_to_all_rows(step.compute, sent.rows(0, plan.num_sent), received,
                            {chunk.send_begin, chunk.send_rows, chunk.recv_begin, chunk.recv_rows});
  }
  const PhaseScope phase(step.clock, Phase::permute);
  ops::gather_rows(step.compute, received, chunk.expert_order, 1, rows);
}

void send_back(Step& step, const DispatchChunk& chunk, ConstTensorView rows, const Communicator& experts,
               TensorView returned) {
  if (experts.size() == 1) return copy_unless_same(step, rows, own_rows(chunk, returned));
  const ArenaScope scope(step.arena);
  const TensorView in_receive_order = step.arena.tensor(rows.dtype, rows.shape);
  {
    const PhaseScope phase(step.clock, Phase::permute);
    ops::gather_rows(step.compute, rows, chunk.receive_order, 1, in_receive_order);
  }
  const PhaseScope phase(step.clock, Phase::all_to_all);
  experts.all_to_all_rows(step.compute, in_receive_order, returned,
                          {chunk.recv_begin, chunk.recv_rows, chunk.send_begin, chunk.send_rows});
}

}  // namespace moecollab::nn
