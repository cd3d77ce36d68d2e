#include "moecollab/ops/route_fixed.hpp"

#include "check.hpp"

namespace moecollab::ops {

namespace {

template <class T>
void pick_by_domain(const std::int32_t* domains, const std::int32_t* table, std::int64_t tokens,
                    std::int64_t top_k, std::int32_t* picks, T* weights) {
#pragma omp parallel for schedule(static)
  for (std::int64_t t = 0; t < tokens; ++t) {
    int found = 0;
    for (std::int64_t k = 0; k < top_k; ++k) {
      const std::int32_t expert = domains[t] < 0 ? -1 : table[domains[t] * top_k + k];
      picks[t * top_k + k] = expert;
      found += expert >= 0 ? 1 : 0;
    }
    for (std::int64_t k = 0; k < top_k; ++k)
      weights[t * top_k + k] = picks[t * top_k + k] >= 0 ? T(1) / static_cast<T>(found) : T(0);
  }
}

}  // namespace

void route_fixed(Stream&, ConstTensorView domains, std::span<const std::int32_t> table, TensorView picks,
                 TensorView weights) {
  constexpr const char* kOp = "route_fixed";
  check_that(picks.shape.rank() == 2 && picks.dim(1) > 0, kOp, "picks is [T,K] with K > 0");
  const std::int64_t tokens = picks.dim(0), top_k = picks.dim(1);
  check_shape(domains, {tokens}, kOp, "domains");
  check_shape(weights, picks.shape, kOp, "weights");
  const auto num_domains = static_cast<std::int64_t>(table.size()) / top_k;
  for (std::int64_t t = 0; t < tokens; ++t)
    check_that(domains.as<std::int32_t>()[t] < num_domains, kOp, "a domain is outside the table");
  if (weights.dtype == DType::f64)
    pick_by_domain(domains.as<std::int32_t>(), table.data(), tokens, top_k, picks.as<std::int32_t>(),
                   weights.as<double>());
  else
    pick_by_domain(domains.as<std::int32_t>(), table.data(), tokens, top_k, picks.as<std::int32_t>(),
                   weights.as<float>());
}

void drop_picks(Stream&, ConstTensorView order, ConstTensorView counts, std::span<const std::int64_t> kept,
                TensorView picks) {
  constexpr const char* kOp = "drop_picks";
  check_shape(order, {picks.numel()}, kOp, "order");
  check_shape(counts, {static_cast<std::int64_t>(kept.size())}, kOp, "counts");
  const auto* sorted = order.as<std::int32_t>();
  std::int64_t begin = 0;
  for (std::size_t key = 0; key < kept.size(); ++key) {
    const std::int64_t count = counts.as<std::int64_t>()[key];
    for (std::int64_t i = kept[key]; i < count; ++i) picks.as<std::int32_t>()[sorted[begin + i]] = -1;
    begin += count;
  }
}

}  // namespace moecollab::ops
