// For code that calls the CUDA runtime: its errors as ours. Not a public header: it needs the toolkit.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <string>

#include "moecollab/core/error.hpp"
#include "moecollab/core/stream.hpp"

namespace moecollab {

[[noreturn]] void throw_cuda_error(cudaError_t error, const char* call, std::source_location where);

// Out of memory is the user's to solve, a lost device the machine's; anything else is a bug of ours.
inline void check_cuda(cudaError_t error, const char* call,
                       std::source_location where = std::source_location::current()) {
  if (error != cudaSuccess) throw_cuda_error(error, call, where);
}

inline cudaStream_t cuda_stream(const Stream& stream) { return static_cast<cudaStream_t>(stream.native()); }

}  // namespace moecollab
