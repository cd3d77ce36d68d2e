// Times operations on the device and prints one JSON line for each.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "moecollab/core/arena.hpp"
#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::bench {

struct Timing {
  double median_ms = 0, min_ms = 0, max_ms = 0;
  int repeats = 0;
};

struct Row {
  std::string name, group;
  DType dtype = DType::bf16;
  std::string shape;
  Timing timing;
  double gflop = 0;         // that the operation must compute
  double gigabytes = 0;     // that it must read and write at least
  std::string bytes;        // `gigabytes` as a formula
  std::string reference{};  // what reference_ms is the time of, in the same run
  double reference_ms = 0;
  std::int64_t rows_per_expert = 0;  // of the expert that has fewest
};

class Bench {
 public:
  // tiny: extents and repeats that only show that everything runs. Cases that would begin after `seconds` are
  // reported as not run.
  Bench(bool tiny, double seconds);

  bool tiny() const { return tiny_; }
  Stream& stream() { return stream_; }
  Arena& arena() { return arena_; }
  bool failed() const { return failed_; }

  // Of the device. The same million values or two over and over, each tensor from another one on, because
  // making them takes the host long.
  Tensor normal(DType dtype, const Shape& shape, double std = 0.5);
  static Tensor zeros(DType dtype, const Shape& shape) { return Tensor(dtype, shape, Device::cuda); }

  // Each call by itself between two events, taking turns, so that clocks and heat are the same for all; after
  // two calls that are not timed. Before each the caches hold other data, which the device reads for long
  // enough that the host is ahead of it.
  std::vector<Timing> time(const std::vector<std::function<void()>>& calls);
  Timing time(const std::function<void()>& call) { return time(std::vector{call})[0]; }

  void print(const Row& row);
  // A case that fails is one line, and the next one runs.
  void run(const std::string& name, const std::function<void()>& body);

 private:
  double seconds_since_start() const;

  bool tiny_;
  double seconds_;
  bool failed_ = false;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  Stream stream_{Device::cuda};
  Arena arena_{std::int64_t{16} << 20, false, Device::cuda};
  Tensor other_data_, other_sum_;
  std::map<std::pair<DType, double>, Tensor> made_;  // of the host
  std::int64_t num_normal_ = 0;
};

inline std::string text(const char* letter, std::int64_t value) {
  return std::string(letter) + std::to_string(value);
}
inline double giga(double value) { return value * 1e-9; }

void copy_case(Bench& bench);
void experts_cases(Bench& bench);
void rows_cases(Bench& bench);
void layer_cases(Bench& bench);
void dense_cases(Bench& bench);

}  // namespace moecollab::bench
