// Memory of CUDA devices, for the files of this room. A build without CUDA has the same functions.
#pragma once

#include <cstdint>

namespace moecollab {

void* cuda_allocate(
    std::int64_t bytes);     // 256-byte aligned, contents unspecified; throws UsageError when full
void cuda_release(void* p);  // waits for the device
void cuda_set_bytes(void* p, int value, std::int64_t bytes);           // waits
void cuda_copy_bytes(void* to, const void* from, std::int64_t bytes);  // any two places; waits
void* pinned_allocate(std::int64_t bytes);  // null where there is no device: use plain memory
void pinned_release(void* p);

}  // namespace moecollab
