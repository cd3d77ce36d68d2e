// What every layer's forward and backward is given.
#pragma once

#include <cstdint>

#include "moecollab/core/arena.hpp"
#include "moecollab/core/param_store.hpp"
#include "moecollab/core/phase.hpp"
#include "moecollab/core/stream.hpp"

namespace moecollab {

struct Step {
  Stream& compute;
  Stream& transfer;  // gradients on their way, under backward
  Stream& exchange;  // rows on their way, under the experts
  Arena& arena;
  ParamStore& params;
  PhaseClock& clock;
  std::uint64_t random_key = 0;
  // Parts in which an MoE layer sends its rows when experts are on several ranks: the next part travels while
  // the experts work on this one. The bits do not depend on it.
  std::int64_t overlap_chunks = 1;
};

}  // namespace moecollab
