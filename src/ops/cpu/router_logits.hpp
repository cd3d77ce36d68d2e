#pragma once

#include <cstdint>

#include "moecollab/core/bfloat16.hpp"

namespace moecollab::ops::cpu {

void router_logits(const float* x, const float* w, const float* bias, std::int64_t tokens,
                   std::int64_t experts, std::int64_t size, float* logits);
void router_logits(const BFloat16* x, const float* w, const float* bias, std::int64_t tokens,
                   std::int64_t experts, std::int64_t size, float* logits);
void router_logits(const double* x, const double* w, const double* bias, std::int64_t tokens,
                   std::int64_t experts, std::int64_t size, double* logits);
void column_sums(const float* x, std::int64_t rows, std::int64_t columns, float* sums);
void column_sums(const double* x, std::int64_t rows, std::int64_t columns, double* sums);

}  // namespace moecollab::ops::cpu
