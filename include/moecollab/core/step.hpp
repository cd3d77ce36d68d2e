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
  Stream& transfer;
  Arena& arena;
  ParamStore& params;
  PhaseClock& clock;
  std::uint64_t random_key = 0;
};

}  // namespace moecollab
