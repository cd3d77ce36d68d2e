// How well the experts of a layer are used, from how many picks each got.
#pragma once

#include <cstdint>
#include <span>

namespace moecollab::report {

struct RoutingHealth {
  double utilisation = 0.0;  // exp(H(c / sum c)) / E in [1/E, 1]: the effective share of experts; 0: no pick
  double max_mean_load = 0.0;     // max c / mean c; 1 is perfect balance, E all to one; 0: no pick
  std::int64_t dead_experts = 0;  // experts with c < 0.1 mean c
};

// c = picks [E], each >= 0.
RoutingHealth routing_health(std::span<const std::int64_t> picks);

}  // namespace moecollab::report
