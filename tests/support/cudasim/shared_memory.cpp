// Shared memory of a block: arrays with red zones in an arena; and cp.async, which writes into it late.
#include <cstring>

#include "machine.hpp"
#include "sanitizers.hpp"

namespace cudasim {

namespace {
constexpr std::size_t kArenaBytes = 512 * 1024, kRedZone = 128, kMaxStatic = 48 * 1024;

std::size_t padded(std::size_t bytes) { return (bytes + 127) / 128 * 128 + kRedZone; }
}  // namespace

std::size_t arena_bytes() { return kArenaBytes; }

SharedArray& place_shared(const void* key, std::size_t bytes, const char* name) {
  Machine& m = machine();
  Block& b = *m.block;
  if (b.shared_count == b.shared.size()) fail("over 63 shared arrays in one block", Loc{});
  b.shared_total += bytes;
  if (b.shared_total > m.options.max_shared)
    fail("the block needs " + std::to_string(b.shared_total) +
             " bytes of shared memory, more than the device has",
         Loc{});
  SharedArray& a = b.shared[b.shared_count++];
  a = {key, name, m.pool->arena + 1024 + b.shared_used, bytes};
  unpoison(a.data, bytes);
  fill_unwritten(a.data, padded(bytes));
  b.shared_used += padded(bytes);
  return a;
}

void take_back_shared(const SharedArray& a) {
  Block& b = *machine().block;
  if (!address_checker()) {  // the red zone as a canary
    for (std::size_t i = a.bytes; i < padded(a.bytes) && b.error.empty(); ++i)
      if (a.data[i] != 0xff)
        b.error = std::string("a thread wrote past the end of shared array '") + a.name + "': byte " +
                  std::to_string(i) + " of " + std::to_string(a.bytes);
  }
  poison(a.data, a.bytes);
}

void* static_smem(const void* key, std::size_t bytes, const char* name) {
  Block& b = *machine().block;
  std::size_t statics = bytes;
  for (unsigned i = 1; i < b.shared_count; ++i) {
    if (b.shared[i].key == key) return b.shared[i].data;
    statics += b.shared[i].bytes;
  }
  if (statics > kMaxStatic) fail("static shared memory over 48 KiB", Loc{});
  return place_shared(key, bytes, name).data;
}

void* dynamic_smem() { return machine().block->shared[0].data; }

bool is_shared(const void* p, std::size_t bytes) {
  const auto* a = static_cast<const unsigned char*>(p);
  const unsigned char* arena = machine().pool->arena;
  return a >= arena && a + bytes <= arena + kArenaBytes;
}

void cp_async_issue(void* to, const void* bytes, unsigned size) {
  CopyGroup::Copy c{to, size, {}};
  std::memcpy(c.bytes.data(), bytes, size);
  machine().current->open.copies.push_back(c);
}

void cp_async_commit() {
  Thread& t = *machine().current;
  t.in_flight.push_back(std::move(t.open));
  t.open = {};
}

bool cp_async_next(unsigned keep, void** to, const void** bytes, unsigned* size) {
  std::vector<CopyGroup>& groups = machine().current->in_flight;
  while (groups.size() > keep) {
    CopyGroup& g = groups.front();
    if (g.landed < g.copies.size()) {
      CopyGroup::Copy& c = g.copies[g.landed++];
      *to = c.to;
      *bytes = c.bytes.data();
      *size = c.size;
      return true;
    }
    groups.erase(groups.begin());
  }
  return false;
}

}  // namespace cudasim
