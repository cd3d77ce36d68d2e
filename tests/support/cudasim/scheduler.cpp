// Launches: the blocks of a grid one after another, the threads of a block until all have ended or none can
// go on.
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "device_functions.hpp"
#include "machine.hpp"
#include "sanitizers.hpp"

namespace cudasim {

std::string text(dim3 d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}
std::string text(Loc loc) {
  std::string file = loc.file;
  if (const auto slash = file.rfind('/'); slash != std::string::npos) file = file.substr(slash + 1);
  return file + ":" + std::to_string(loc.line);
}

namespace {
std::string describe(const Thread& t) {
  char mask[32] = "";
  switch (t.state) {
    case State::exited:
      return "exited";
    case State::runnable:
      return "running";
    case State::in_collective:
      std::snprintf(mask, sizeof mask, " mask 0x%08x", t.wait_mask);
      break;
    case State::in_barrier:
      break;
  }
  return std::string("waiting at ") + t.waits_for + mask + " in " + text(t.loc);
}
}  // namespace

std::string thread_table() {
  Block& b = *machine().block;
  std::vector<std::pair<std::string, std::vector<unsigned>>> places;
  for (unsigned i = 0; i < b.thread_count; ++i) {
    const std::string what = describe(*machine().pool->threads[i]);
    auto place = places.begin();
    while (place != places.end() && place->first != what) ++place;
    if (place == places.end()) place = places.insert(place, {what, {}});
    place->second.push_back(i);
  }
  std::string out;
  for (const auto& [what, threads] : places) {
    out += "\n  " + std::to_string(threads.size()) + (threads.size() == 1 ? " thread " : " threads ") + what +
           ":";
    unsigned ranges = 0;
    for (std::size_t i = 0, j = 0; i < threads.size(); i = j + 1) {
      for (j = i; j + 1 < threads.size() && threads[j + 1] == threads[j] + 1;) ++j;
      if (++ranges > 8) {
        out += " ...";
        break;
      }
      out += " " + std::to_string(threads[i]) + (i == j ? "" : "-" + std::to_string(threads[j]));
    }
  }
  return out;
}

void fail(const std::string& what, Loc loc) {
  const Thread* t = machine().current;
  const std::string who =
      t != nullptr ? "thread " + text(dim3{t->index.x, t->index.y, t->index.z}) + ": " : "";
  throw std::runtime_error(who + what + (loc.line != 0 ? " in " + text(loc) : ""));
}

void complete_barrier() {
  Block& b = *machine().block;
  Barrier& barrier = b.barrier;
  if (barrier.divergent && b.error.empty()) {
    b.error = "threads of the block meet at different barriers" + thread_table();
    b.cancelling = true;
  }
  barrier.result = barrier.votes;
  for (unsigned i = 0; i < b.thread_count; ++i) {
    Thread& t = *machine().pool->threads[i];
    if (t.state == State::in_barrier) set_runnable(t);
  }
  ++barrier.generation;
  barrier.arrived = barrier.votes = 0;
  barrier.divergent = false;
}

int block_barrier(const char* name, Vote vote, int predicate, Loc loc) {
  Machine& m = machine();
  Thread& t = *m.current;
  Barrier& barrier = m.block->barrier;
  char* order = m.block->orders + (barrier.generation & 1);
  release(order);
  if (barrier.arrived == 0) {
    barrier.name = name;
    barrier.loc = loc;
    barrier.votes = vote == Vote::all;
  } else if (std::strcmp(barrier.name, name) != 0 || barrier.loc.line != loc.line ||
             std::strcmp(barrier.loc.file, loc.file) != 0) {
    barrier.divergent = true;
  }
  if (vote == Vote::count) barrier.votes += predicate != 0;
  if (vote == Vote::all) barrier.votes &= predicate != 0;
  if (vote == Vote::any) barrier.votes |= predicate != 0;
  ++barrier.arrived;
  t.waits_for = name;
  t.loc = loc;
  set_waiting(t, State::in_barrier);
  if (barrier.arrived == static_cast<int>(m.block->alive)) complete_barrier();
  reschedule(t);
  acquire(order);
  return barrier.result;
}

namespace {
void prepare_block(Block& b, const LaunchInfo& info, unsigned count) {
  Machine& m = machine();
  for (Warp& w : b.warps) w.pending_count = w.alive = w.syncs = 0;
  b.barrier = Barrier{};
  b.orders = m.orders.data() + m.blocks % kBlocksOfOrders * kOrders;
  b.runnable.fill(0);
  b.runnable_warps = 0;
  b.shared_count = 0;
  b.shared_used = b.shared_total = 0;
  b.error.clear();
  b.cancelling = false;
  b.thread_count = b.alive = count;
  m.block = &b;
  m.pool = &m.pools[race_detector() ? m.blocks % kPools : 0];
  m.current = nullptr;
  place_shared(nullptr, info.shared_bytes, "dynamic shared memory");
  for (unsigned i = 0; i < count; ++i) {
    Thread& t = thread_at(*m.pool, i);
    t.lane = i % 32;
    t.warp = i / 32;
    t.index = {i % info.block.x, i / info.block.x % info.block.y, i / (info.block.x * info.block.y)};
    b.warps[t.warp].alive |= 1u << t.lane;
    set_runnable(t);
  }
  ++m.blocks;
  ++m.pool->blocks;
}

void run_thread(Thread& t) {  // until no thread of the block can go on
  Machine& m = machine();
  switch_to(m.host, t, &t);
  acquire(&m.finish_order);
}

std::string run_block(const LaunchInfo& info, uint3 index, unsigned count) {
  static Block* storage = new Block;
  Machine& m = machine();
  Block& b = *storage;
  blockIdx = index;
  prepare_block(b, info, count);
  if (race_detector()) m.host.tsan = __tsan_get_current_fiber();
  while (b.alive > 0 && !b.cancelling) {
    Thread* next = pick_next(nullptr);
    if (next == nullptr) break;
    run_thread(*next);
  }
  if (b.alive > 0 && b.error.empty()) b.error = "deadlock: no thread of the block can go on" + thread_table();
  if (b.alive > 0) {  // unwind the threads that are stuck
    b.cancelling = true;
    for (unsigned i = 0; i < count; ++i) {
      Thread& t = *m.pool->threads[i];
      if (t.state == State::exited) continue;
      if (t.started)
        run_thread(t);
      else
        leave(t);
    }
  }
  for (unsigned i = 0; i < b.shared_count; ++i) take_back_shared(b.shared[i]);
  m.block = nullptr;
  m.current = nullptr;
  return b.error.empty() ? "" : "block " + text(dim3{index.x, index.y, index.z}) + ": " + b.error;
}

void report(const LaunchInfo& info, const std::string& error) {
  std::fprintf(stderr, "cudasim: kernel '%s' <<<%s, %s>>> launched in %s, %s\n", info.name,
               text(info.grid).c_str(), text(info.block).c_str(), text(info.loc).c_str(), error.c_str());
}

std::string refusal(const LaunchInfo& info, std::uint64_t threads) {
  if (threads == 0 || threads > kMaxThreads || info.block.z > 64) return "a block has 1 to 1024 threads";
  if (info.grid.x == 0 || info.grid.y == 0 || info.grid.z == 0) return "the grid is empty";
  if (info.grid.x > 0x7fffffffu || info.grid.y > 65535 || info.grid.z > 65535)
    return "a dimension of the grid is out of range";
  if (info.shared_bytes > max_dynamic_shared(info.function))
    return "dynamic shared memory over 48 KiB needs gpu::allow_shared";
  if (info.shared_bytes > machine().options.max_shared) return "more shared memory than the device has";
  return "";
}

// One at a time in the process: the runtime's lock is held.
cudaError_t run(const LaunchInfo& info, unsigned threads, const std::function<void()>& body) {
  Machine& m = machine();
  m.random = (m.options.seed * 0x9e3779b97f4a7c15u) | 1;
  m.body = &body;
  gridDim = info.grid;
  blockDim = info.block;
  // Created now: to the race detector a fiber comes after all that its creator knows of.
  if (race_detector())
    for (Pool& p : m.pools) thread_at(p, threads - 1);
  release(&m.launch_order);
  std::string error;
  const std::uint64_t blocks = std::uint64_t{info.grid.x} * info.grid.y * info.grid.z;
  const std::uint64_t first = m.options.schedule == Schedule::random ? next_random() % blocks : 0;
  for (std::uint64_t i = 0; i < blocks && error.empty();
       ++i) {  // blocks carry no order: other schedules, other orders
    const std::uint64_t k =
        m.options.schedule == Schedule::descending ? blocks - 1 - i : (first + i) % blocks;
    const uint3 index = {static_cast<unsigned>(k % info.grid.x),
                         static_cast<unsigned>(k / info.grid.x % info.grid.y),
                         static_cast<unsigned>(k / info.grid.x / info.grid.y)};
    error = run_block(info, index, threads);
  }
  acquire(&m.finish_order);
  if (const std::size_t bytes = damaged_allocation(); bytes > 0 && error.empty())
    error = "a thread wrote past the end of an allocation of " + std::to_string(bytes) + " bytes";
  if (error.empty()) return cudaSuccess;
  report(info, error);
  return cudaErrorLaunchFailure;
}
}  // namespace

cudaError_t check_pointer_argument(const LaunchInfo& info, int index, const void* p) {
  if (p == nullptr || belongs_to_current_device(p)) return cudaSuccess;
  report(info,
         "argument " + std::to_string(index) + " is a pointer that no CUDA allocation of the device holds");
  return note_error(cudaErrorIllegalAddress);
}

cudaError_t launch(const LaunchInfo& info, cudaStream_t stream, std::function<void()> body) {
  const std::uint64_t threads = std::uint64_t{info.block.x} * info.block.y * info.block.z;
  if (const std::string why = refusal(info, threads); !why.empty()) {
    report(info, why);
    return note_error(cudaErrorInvalidConfiguration);
  }
  if (!is_current_device(stream)) {
    report(info, "the stream belongs to another device");
    return note_error(cudaErrorInvalidResourceHandle);
  }
  return enqueue(stream, [info, threads = static_cast<unsigned>(threads), body = std::move(body)] {
    return run(info, threads, body);
  });
}

}  // namespace cudasim
