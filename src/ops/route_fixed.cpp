#include "moecollab/ops/route_fixed.hpp"

#include <algorithm>

#include "ops/check.hpp"
#include "ops/cuda/route_fixed.hpp"

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

void route_fixed(Stream& stream, ConstTensorView domains, std::span<const std::int32_t> table,
                 TensorView picks, TensorView weights) {
  constexpr const char* kOp = "route_fixed";
  check_device(stream, kOp, {domains, picks, weights});
  check_that(picks.shape.rank() == 2 && picks.dim(1) > 0, kOp, "picks is [T,K] with K > 0");
  const std::int64_t tokens = picks.dim(0), top_k = picks.dim(1);
  check_shape(domains, {tokens}, kOp, "domains");
  check_shape(weights, picks.shape, kOp, "weights");
  const auto num_domains = static_cast<std::int64_t>(table.size()) / top_k;
  const auto* domain_of_token = domains.as<std::int32_t>();
  on_device(
      stream,
      [&] {
        check_that(std::all_of(domain_of_token, domain_of_token + tokens,
                               [&](std::int32_t domain) { return domain < num_domains; }),
                   kOp, "a domain is outside the table");
        if (weights.dtype == DType::f64)
          pick_by_domain(domain_of_token, table.data(), tokens, top_k, picks.as<std::int32_t>(),
                         weights.as<double>());
        else
          pick_by_domain(domain_of_token, table.data(), tokens, top_k, picks.as<std::int32_t>(),
                         weights.as<float>());
      },
      [&] {
        cuda::route_fixed(stream, domain_of_token, table, tokens, top_k, picks.as<std::int32_t>(),
                          weights.as<float>());
      });
}

}  // namespace moecollab::ops
