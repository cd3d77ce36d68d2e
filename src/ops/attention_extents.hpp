#pragma once

#include <cstdint>

namespace moecollab::ops {

struct AttentionExtents {
  std::int64_t B = 0, S = 0, H = 0, Hkv = 0, Dh = 0;
  bool causal = true;
  double scale = 1.0;
};

}  // namespace moecollab::ops
