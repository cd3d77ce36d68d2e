// What the lanes of a warp do together: votes, reductions, matches, shuffles, __syncwarp.
#include <functional>

#include "machine.hpp"
#include "sanitizers.hpp"

namespace cudasim {

void collective(const char* name, unsigned mask, CollectiveFunction function, void* arg, bool orders_memory,
                Loc loc) {
  Machine& m = machine();
  Thread& t = *m.current;
  Warp& w = m.block->warps[t.warp];
  if ((mask >> t.lane & 1) == 0) fail(std::string(name) + ": the calling lane is not in its own mask", loc);
  if ((mask & ~w.alive) != 0)
    fail(std::string(name) + ": the mask names lanes that have exited or do not exist", loc);
  PendingCollective* p = nullptr;
  for (unsigned i = 0; i < w.pending_count; ++i) {
    PendingCollective& q = w.pending[i];
    if (q.mask == mask && q.function == function && q.name == name) p = &q;
  }
  if (p == nullptr) {
    p = &w.pending[w.pending_count++];
    p->name = name;
    p->function = function;
    p->mask = mask;
    p->arrived = 0;
    p->order = m.block->orders + kBlockOrders + t.warp * kWarpOrders + w.syncs++ % kWarpOrders;
  }
  char* order = p->order;
  if (orders_memory) release(order);
  p->args[t.lane] = arg;
  p->arrived |= 1u << t.lane;
  if (p->arrived == mask) {
    function(p->args.data(), mask);
    --w.pending_count;
    if (p != &w.pending[w.pending_count]) *p = w.pending[w.pending_count];
    for (unsigned rest = mask & ~(1u << t.lane); rest != 0; rest &= rest - 1)
      set_runnable(*m.pool->threads[t.warp * 32 + static_cast<unsigned>(__builtin_ctz(rest))]);
  } else {
    t.waits_for = name;
    t.wait_mask = mask;
    t.loc = loc;
    set_waiting(t, State::in_collective);
    reschedule(t);
  }
  if (orders_memory) acquire(order);
}

namespace {
template <class F>
void for_each_lane(unsigned mask, F f) {
  for (; mask != 0; mask &= mask - 1) f(static_cast<unsigned>(__builtin_ctz(mask)));
}

struct Word {
  unsigned in, out;
};
Word& word(void* const* lanes, unsigned lane) { return *static_cast<Word*>(lanes[lane]); }

template <class T, class Fold>
CollectiveFunction fold(Fold) {
  return [](void* const* lanes, unsigned mask) {
    T sum = static_cast<T>(word(lanes, static_cast<unsigned>(__builtin_ctz(mask))).in);
    for_each_lane(mask & (mask - 1),
                  [&](unsigned l) { sum = Fold{}(sum, static_cast<T>(word(lanes, l).in)); });
    for_each_lane(mask, [&](unsigned l) { word(lanes, l).out = static_cast<unsigned>(sum); });
  };
}

void ballot(void* const* lanes, unsigned mask) {
  unsigned votes = 0;
  for_each_lane(mask, [&](unsigned l) { votes |= static_cast<unsigned>(word(lanes, l).in != 0) << l; });
  for_each_lane(mask, [&](unsigned l) { word(lanes, l).out = votes; });
}

void match(void* const* lanes, unsigned mask) {
  for_each_lane(mask, [&](unsigned l) {
    unsigned same = 0;
    for_each_lane(mask, [&](unsigned k) {
      same |= static_cast<unsigned>(word(lanes, k).in == word(lanes, l).in) << k;
    });
    word(lanes, l).out = same;
  });
}

CollectiveFunction function_of(WarpOp op) {
  const auto larger = [](auto a, auto b) { return a > b ? a : b; };
  const auto smaller = [](auto a, auto b) { return a < b ? a : b; };
  switch (op) {
    case WarpOp::sync:
      return [](void* const*, unsigned) {};
    case WarpOp::ballot:
      return &ballot;
    case WarpOp::match:
      return &match;
    case WarpOp::add_u:
    case WarpOp::add_i:
      return fold<unsigned>(std::plus<>{});  // wraps
    case WarpOp::max_u:
      return fold<unsigned>(larger);
    case WarpOp::max_i:
      return fold<int>(larger);
    case WarpOp::min_u:
      return fold<unsigned>(smaller);
    case WarpOp::min_i:
      return fold<int>(smaller);
    case WarpOp::bit_or:
      return fold<unsigned>(std::bit_or<>{});
    case WarpOp::bit_and:
      return fold<unsigned>(std::bit_and<>{});
    case WarpOp::bit_xor:
      return fold<unsigned>(std::bit_xor<>{});
  }
  return nullptr;
}

struct Shuffle {
  std::uint64_t value, result;
  unsigned source;
};
void shuffle_all(void* const* lanes, unsigned mask) {
  for_each_lane(mask, [&](unsigned l) {
    auto* mine = static_cast<Shuffle*>(lanes[l]);
    if ((mask >> mine->source & 1) == 0)
      fail("a shuffle reads lane " + std::to_string(mine->source) + ", which its mask leaves out", Loc{});
    mine->result = static_cast<Shuffle*>(lanes[mine->source])->value;
  });
}
}  // namespace

unsigned warp_op(const char* name, WarpOp op, unsigned mask, unsigned value, Loc loc) {
  Word w{value, 0};
  collective(name, mask, function_of(op), &w, op == WarpOp::sync, loc);
  return w.out;
}

std::uint64_t shuffle(const char* name, unsigned mask, std::uint64_t value, unsigned source_lane, Loc loc) {
  Shuffle s{value, 0, source_lane};
  collective(name, mask, &shuffle_all, &s, false, loc);
  return s.result;
}

}  // namespace cudasim
