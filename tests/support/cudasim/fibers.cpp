// CUDA threads as fibers: making them, choosing the next, switching, ending.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "machine.hpp"
#include "sanitizers.hpp"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cudasim {

namespace context = boost::context;

Machine::Machine() {
  if (const char* s = std::getenv("CUDASIM_SCHEDULE")) {
    if (std::strcmp(s, "desc") == 0) {
      options.schedule = Schedule::descending;
    } else if (std::strcmp(s, "asc") != 0) {
      options.schedule = Schedule::random;
      options.seed = std::strtoull(s, nullptr, 10);
    }
  }
  if (const char* s = std::getenv("CUDASIM_STREAMS")) options.lazy_streams = std::strcmp(s, "lazy") == 0;
  if (const char* s = std::getenv("CUDASIM_MEMORY_MB"))
    options.device_memory = std::strtoull(s, nullptr, 10) << 20;
  for (Pool& p : pools) {
    void* memory = mmap(nullptr, arena_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    p.arena = static_cast<unsigned char*>(memory);
    poison(p.arena, arena_bytes());
  }
}

Machine& machine() {
  static Machine* m = new Machine;  // never destroyed: the fibers' stacks stay valid to the end
  return *m;
}
namespace {
// The race detector does not see the guard of the static above.
[[maybe_unused]] const Machine& made_before_main = machine();
}  // namespace

Options& options() { return machine().options; }
unsigned lane_id() { return machine().current->lane; }

std::uint64_t next_random() {
  std::uint64_t& r = machine().random;
  r ^= r << 13;
  r ^= r >> 7;
  r ^= r << 17;
  return r;
}

void set_runnable(Thread& t) {
  Block& b = *machine().block;
  t.state = State::runnable;
  b.runnable[t.warp] |= 1u << t.lane;
  b.runnable_warps |= 1u << t.warp;
}

void set_waiting(Thread& t, State state) {
  Block& b = *machine().block;
  t.state = state;
  b.runnable[t.warp] &= ~(1u << t.lane);
  if (b.runnable[t.warp] == 0) b.runnable_warps &= ~(1u << t.warp);
}

namespace {
unsigned pick_bit(unsigned bits, unsigned after) {
  switch (machine().options.schedule) {
    case Schedule::random:
      for (auto skip = next_random() % static_cast<unsigned>(__builtin_popcount(bits)); skip > 0; --skip)
        bits &= bits - 1;
      return static_cast<unsigned>(__builtin_ctz(bits));
    case Schedule::descending:
      return 31u - static_cast<unsigned>(__builtin_clz(bits));
    case Schedule::ascending:
      break;
  }
  const unsigned above = after < 31 ? bits & ~((2u << after) - 1) : 0;
  return static_cast<unsigned>(__builtin_ctz(above != 0 ? above : bits));
}
}  // namespace

// Stays in the warp while one of its lanes can go on: one warp far ahead of the others shows a missing
// barrier.
Thread* pick_next(const Thread* from) {
  Block& b = *machine().block;
  if (b.runnable_warps == 0) return nullptr;
  unsigned warp = from != nullptr ? from->warp : 31;
  const bool hop = machine().options.schedule == Schedule::random && next_random() % 256 == 0;
  if (from == nullptr || hop || b.runnable[warp] == 0) warp = pick_bit(b.runnable_warps, warp);
  const unsigned lane = pick_bit(b.runnable[warp], from != nullptr && from->warp == warp ? from->lane : 31);
  return machine().pool->threads[warp * 32 + lane].get();
}

namespace {
void finish_switch(Context& self) {  // first thing on arriving in a context
  if (__sanitizer_finish_switch_fiber == nullptr) return;
  Machine& m = machine();
  const void* bottom = nullptr;
  std::size_t size = 0;
  __sanitizer_finish_switch_fiber(self.fake_stack, &bottom, &size);
  if (m.previous == &m.host) {
    m.host.stack_bottom = const_cast<void*>(bottom);
    m.host.stack_size = size;
  }
}
}  // namespace

void switch_to(Context& from, Context& to, Thread* thread) {
  Machine& m = machine();
  m.previous = &from;
  m.current = thread;
  if (thread != nullptr) threadIdx = thread->index;
  if (__sanitizer_start_switch_fiber != nullptr)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_bottom, to.stack_size);
  if (race_detector()) __tsan_switch_to_fiber(to.tsan, 1);  // 1: the switch itself orders nothing
  context::fiber back = std::move(to.fiber).resume();
  finish_switch(from);
  m.previous->fiber = std::move(back);
}

void reschedule(Thread& t) {
  Machine& m = machine();
  Thread* next = m.block->cancelling ? nullptr : pick_next(&t);
  if (next == nullptr) {
    release(&m.finish_order);
    switch_to(t, m.host, nullptr);
  } else if (next != &t) {
    switch_to(t, *next, next);
  }
  if (m.block->cancelling && t.started) throw Cancelled{};
}

void leave(Thread& t) {
  Block& b = *machine().block;
  if (!t.open.copies.empty() || !t.in_flight.empty()) {
    if (!b.cancelling && b.error.empty()) b.error = "a thread exits with cp.async copies it never waited for";
    t.open.copies.clear();
    t.in_flight.clear();
  }
  set_waiting(t, State::exited);
  b.warps[t.warp].alive &= ~(1u << t.lane);
  --b.alive;
  if (b.alive > 0 && b.barrier.arrived == static_cast<int>(b.alive)) complete_barrier();
}

namespace {
void thread_main(Thread& t) {  // a fiber serves one thread of each block
  Machine& m = machine();
  for (;;) {
    t.started = true;
    acquire(&m.launch_order);
    acquire(&m.pool->order[m.pool->blocks & 1]);
    try {
      (*m.body)();
    } catch (const Cancelled&) {
    } catch (const std::exception& e) {
      if (m.block->error.empty()) m.block->error = e.what();
      m.block->cancelling = true;
    }
    release(&m.finish_order);
    release(&m.pool->order[~m.pool->blocks & 1]);
    t.started = false;
    leave(t);
    reschedule(t);
  }
}

std::unique_ptr<Thread> make_thread(std::size_t number) {
  auto t = std::make_unique<Thread>();
  // Sanitizers need the larger frames.
  t->stack_size = (__sanitizer_start_switch_fiber != nullptr || race_detector() ? 256 : 64) * 1024;
  constexpr std::size_t kGuard = 4096;
  void* base = mmap(nullptr, t->stack_size + kGuard, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  mprotect(base, kGuard, PROT_NONE);
  t->stack_bottom = static_cast<char*>(base) + kGuard;
  if (race_detector()) {
    t->tsan = __tsan_create_fiber(0);
    __tsan_set_fiber_name(t->tsan, ("CUDA thread " + std::to_string(number)).c_str());
  }
  struct NoFree {
    void deallocate(context::stack_context&) {}
  };
  context::stack_context stack;
  stack.size = t->stack_size;
  stack.sp = static_cast<char*>(t->stack_bottom) + t->stack_size;
  Thread* raw = t.get();
  t->fiber = context::fiber(std::allocator_arg, context::preallocated(stack.sp, stack.size, stack), NoFree{},
                            [raw](context::fiber&& from) {
                              finish_switch(*raw);
                              machine().previous->fiber = std::move(from);
                              thread_main(*raw);
                              return context::fiber();
                            });
  return t;
}
}  // namespace

Thread& thread_at(Pool& pool, unsigned i) {
  while (pool.threads.size() <= i) pool.threads.push_back(make_thread(pool.threads.size()));
  return *pool.threads[i];
}

}  // namespace cudasim
