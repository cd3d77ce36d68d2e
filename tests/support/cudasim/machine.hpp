// The emulator's own state: threads as fibers, the block that runs, and what its threads share.
#pragma once

#include <array>
#include <boost/context/fiber.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulator.hpp"

namespace cudasim {

inline constexpr unsigned kMaxThreads = 1024, kMaxWarps = 32;
inline constexpr unsigned kPools =
    3;  // as many blocks are unordered to the race detector; else one pool serves
// Addresses that stand for a block's barriers to the race detector: two generations of the block barrier,
// since a thread may arrive at the next before another has left the last, and some of the latest of each
// warp.
inline constexpr unsigned kBlockOrders = 2, kWarpOrders = 8, kOrders = kBlockOrders + kMaxWarps * kWarpOrders;
inline constexpr unsigned kBlocksOfOrders = 256;  // blocks share no barrier, so they must share no address

struct Cancelled {};  // thrown in the threads of a block that failed

struct Context {  // the launching thread's stack, or one CUDA thread's
  boost::context::fiber fiber;
  void* stack_bottom = nullptr;
  std::size_t stack_size = 0;
  void* fake_stack = nullptr;
  void* tsan = nullptr;
};

struct CopyGroup {  // cp.async copies between two commits
  struct Copy {
    void* to;
    unsigned size;
    std::array<unsigned char, 16> bytes;
  };
  std::vector<Copy> copies;
  std::size_t landed = 0;
};

enum class State : unsigned char { runnable, in_barrier, in_collective, exited };

struct Thread : Context {
  unsigned lane = 0, warp = 0;
  uint3 index{};
  State state = State::exited;
  const char* waits_for = "";
  unsigned wait_mask = 0;
  Loc loc;
  CopyGroup open;
  std::vector<CopyGroup> in_flight;
  bool started = false;
};

// Runs once all lanes of `mask` have come, and sees every lane's argument.
using CollectiveFunction = void (*)(void* const* lane_args, unsigned mask);

struct PendingCollective {
  const char* name;
  CollectiveFunction function;
  unsigned mask, arrived;
  char* order;
  std::array<void*, 32> args;
};

// What threads of a block share is of fixed size: memory that one fiber allocates and another frees would be
// a race to the detector.
struct Warp {
  unsigned alive = 0, pending_count = 0, syncs = 0;
  std::array<PendingCollective, 32> pending;
};

struct Barrier {
  int arrived = 0, votes = 0, result = 0;
  unsigned generation = 0;
  const char* name = nullptr;
  Loc loc;
  bool divergent = false;
};

struct SharedArray {
  const void* key;
  const char* name;
  unsigned char* data;
  std::size_t bytes;
};

struct Block {
  unsigned thread_count = 0, alive = 0;
  std::array<unsigned, kMaxWarps> runnable{};  // lanes of each warp
  unsigned runnable_warps = 0;
  std::array<Warp, kMaxWarps> warps;
  Barrier barrier;
  std::array<SharedArray, 64> shared;  // [0] is the dynamic array, of size 0 if the launch asked for none
  unsigned shared_count = 0;
  std::size_t shared_used = 0, shared_total = 0;
  char* orders = nullptr;
  std::string error;
  bool cancelling = false;
};

// The threads and the shared memory that blocks use, one block at a time.
struct Pool {
  std::vector<std::unique_ptr<Thread>> threads;
  unsigned char* arena = nullptr;
  unsigned blocks = 0;
  char order[2] = {};  // a block comes after its predecessor here: it acquires one, releases the other
};

struct Machine {
  Options options;
  Context host;
  std::array<Pool, kPools> pools;
  Pool* pool = nullptr;
  Block* block = nullptr;
  Thread* current = nullptr;    // null while the host runs
  Context* previous = nullptr;  // who switched to the context now running
  const std::function<void()>* body = nullptr;
  std::uint64_t random = 1, blocks = 0;  // blocks run so far
  char launch_order = 0, finish_order = 0;
  std::array<char, std::size_t{kBlocksOfOrders} * kOrders> orders{};

  Machine();
};
Machine& machine();
std::uint64_t next_random();

// Fibers.
Thread& thread_at(Pool& pool, unsigned i);
Thread* pick_next(const Thread* from);
void switch_to(Context& from, Context& to, Thread* thread);
void reschedule(Thread& thread);  // gives the processor to another thread, or to the host when none can run
void set_runnable(Thread& thread);
void set_waiting(Thread& thread, State state);
void leave(Thread& thread);

// Barriers and reports.
void complete_barrier();
std::string thread_table();  // a line for each place where threads are
std::string text(dim3 d);
std::string text(Loc loc);

// Shared memory.
std::size_t arena_bytes();
SharedArray& place_shared(const void* key, std::size_t bytes, const char* name);
void take_back_shared(const SharedArray& array);

// All lanes of `mask` meet here; the last to come runs `function` over their arguments.
void collective(const char* name, unsigned mask, CollectiveFunction function, void* arg, bool orders_memory,
                Loc loc);

// The runtime: how much dynamic shared memory a kernel may ask for, and the error of a call that failed.
std::size_t max_dynamic_shared(const void* function);
cudaError_t note_error(cudaError_t error);
bool belongs_to_current_device(const void* p);
bool is_current_device(cudaStream_t stream);
std::size_t damaged_allocation();  // the size of an allocation behind which something wrote, or 0

}  // namespace cudasim
