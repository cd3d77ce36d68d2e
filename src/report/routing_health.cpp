#include "moecollab/report/routing_health.hpp"

#include <algorithm>
#include <cmath>

namespace moecollab::report {

RoutingHealth routing_health(std::span<const std::int64_t> picks) {
  double total = 0.0;
  for (const std::int64_t c : picks) total += static_cast<double>(c);
  RoutingHealth health;
  if (total <= 0.0) return health;
  const double num_experts = static_cast<double>(picks.size());
  const double mean = total / num_experts;
  double entropy = 0.0;
  for (const std::int64_t c : picks) {
    const double share = static_cast<double>(c) / total;
    if (share > 0.0) entropy -= share * std::log(share);
    health.max_mean_load = std::max(health.max_mean_load, static_cast<double>(c) / mean);
    if (static_cast<double>(c) < 0.1 * mean) ++health.dead_experts;
  }
  health.utilisation = std::exp(entropy) / num_experts;
  return health;
}

}  // namespace moecollab::report
