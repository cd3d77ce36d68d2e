#pragma once

#include <cstdint>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

struct SortedIds {  // in the stream's scratch memory
  const std::int32_t *ids, *positions;
};
// ids [T] in [0,V) in ascending order, and where each stood; equal ids stay in order. Takes the stream's
// scratch memory: about 16 bytes an id.
SortedIds sort_ids(Stream& stream, const std::int32_t* ids, std::int64_t T, std::int64_t V);

}  // namespace moecollab::ops::cuda
