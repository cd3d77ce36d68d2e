// Times one operation and holds it against what the machine can do.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "moecollab/core/random.hpp"
#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::bench {

// Shares above one are possible: a working set that fits the cache moves faster than a large copy.
struct Limits {
  double f32_gflop_per_s = 0, bf16_gflop_per_s = 0;  // a large square product on all threads
  double copy_gb_per_s = 0;                          // bytes read and written by a large copy
};

struct Row {
  std::string op, shape;
  DType dtype = DType::f32;
  double ms = 0;
  double gflop = 0, gigabytes = 0;  // of one call: what it must compute, what it must move at least
  double gflop_per_s() const { return gflop / ms * 1e3; }
  double gb_per_s() const { return gigabytes / ms * 1e3; }
};

// Share of the limit that binds: of the two times the machine would need at best, the longer, over the time
// taken.
inline double share_of_limit(const Row& row, const Limits& limits) {
  const double peak = row.dtype == DType::bf16 ? limits.bf16_gflop_per_s : limits.f32_gflop_per_s;
  return std::max(row.gflop / peak, row.gigabytes / limits.copy_gb_per_s) / row.ms * 1e3;
}

// Milliseconds of the least disturbed call, after a first one that builds primitives and touches memory.
inline double best_ms(const std::function<void()>& call) {
  using Clock = std::chrono::steady_clock;
  constexpr int kMinCalls = 5, kMaxCalls = 50;
  constexpr double kEnoughMs = 200;
  call();
  double best = 0, total = 0;
  for (int calls = 0; calls < kMinCalls || (total < kEnoughMs && calls < kMaxCalls); ++calls) {
    const auto begin = Clock::now();
    call();
    const double ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
    best = calls == 0 ? ms : std::min(best, ms);
    total += ms;
  }
  return best;
}

inline Tensor normal(DType dtype, const Shape& shape, std::uint64_t stream) {
  Tensor t(dtype, shape);
  fill_normal(1, stream, 0.5, t.view());
  return t;
}

inline std::string text(const char* letter, std::int64_t value) {
  return std::string(letter) + std::to_string(value) + " ";
}

using Rows = std::vector<Row>;
Limits measure_limits(Stream& stream);
void dense_cases(Stream& stream, DType dtype, Rows& rows);
void moe_cases(Stream& stream, DType dtype, Rows& rows);

}  // namespace moecollab::bench
