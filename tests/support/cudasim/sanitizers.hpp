// The runtimes of AddressSanitizer and ThreadSanitizer by weak symbols, null in a program built without them.
// The emulator itself is compiled without sanitizers and tells them what its fibers do.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** save, const void* bottom, std::size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* save, const void** bottom, std::size_t* size);
[[gnu::weak]] void __asan_poison_memory_region(const volatile void* p, std::size_t bytes);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* p, std::size_t bytes);
[[gnu::weak]] void* __tsan_get_current_fiber(void);
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_set_fiber_name(void* fiber, const char* name);
[[gnu::weak]] void __tsan_acquire(void* p);
[[gnu::weak]] void __tsan_release(void* p);
}

namespace cudasim {

inline bool race_detector() { return __tsan_create_fiber != nullptr; }
inline bool address_checker() { return __asan_poison_memory_region != nullptr; }

inline void poison(const void* p, std::size_t bytes) {
  if (address_checker()) __asan_poison_memory_region(p, bytes);
}
inline void unpoison(const void* p, std::size_t bytes) {
  if (address_checker()) __asan_unpoison_memory_region(p, bytes);
}
// To the race detector, what follows acquire(p) comes after what preceded release(p).
inline void acquire(void* p) {
  if (race_detector()) __tsan_acquire(p);
}
inline void release(void* p) {
  if (race_detector()) __tsan_release(p);
}

// NaN as float or bf16, -1 as an integer: a read before a write shows. Sanitizers do not see these stores, as
// they would a call of memset.
inline void fill_unwritten(unsigned char* p, std::size_t bytes) {
  while (bytes > 0 && (reinterpret_cast<std::uintptr_t>(p) & 7) != 0) {
    *static_cast<volatile unsigned char*>(p++) = 0xff;
    --bytes;
  }
  for (; bytes >= 8; bytes -= 8, p += 8) *reinterpret_cast<volatile std::uint64_t*>(p) = ~std::uint64_t{0};
  while (bytes-- > 0) *static_cast<volatile unsigned char*>(p++) = 0xff;
}

}  // namespace cudasim
