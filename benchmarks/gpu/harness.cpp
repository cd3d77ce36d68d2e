#include "harness.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <exception>

#include "moecollab/core/cuda_check.cuh"
#include "moecollab/core/device.hpp"
#include "moecollab/core/random.hpp"
#include "moecollab/ops/elementwise.hpp"

namespace moecollab::bench {
namespace {

constexpr int kMinRepeats = 5, kMaxRepeats = 40;
constexpr double kMsPerCase = 500;                           // for each call
constexpr std::int64_t kOtherData = std::int64_t{64} << 20;  // floats: 256 MiB, more than any L2 cache

class TimeStamp {  // an event that keeps the time
 public:
  TimeStamp() { check_cuda(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~TimeStamp() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  TimeStamp(TimeStamp&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  TimeStamp(const TimeStamp&) = delete;
  TimeStamp& operator=(const TimeStamp&) = delete;
  TimeStamp& operator=(TimeStamp&&) = delete;

  void record(Stream& stream) { check_cuda(cudaEventRecord(event_, cuda_stream(stream)), "cudaEventRecord"); }
  double ms_since(const TimeStamp& before) const {
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, before.event_, event_), "cudaEventElapsedTime");
    return static_cast<double>(ms);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

Timing summary(std::vector<double> ms) {
  std::sort(ms.begin(), ms.end());
  const std::size_t n = ms.size();
  const double median = n % 2 == 1 ? ms[n / 2] : (ms[n / 2 - 1] + ms[n / 2]) / 2;
  return {median, ms.front(), ms.back(), static_cast<int>(n)};
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

}  // namespace

Bench::Bench(bool tiny, double seconds)
    : tiny_(tiny),
      seconds_(seconds),
      other_data_(DType::f32, {tiny ? 256 : kOtherData}, Device::cuda),
      other_sum_(DType::f64, {1}, Device::cuda) {}

Tensor Bench::normal(DType dtype, const Shape& shape, double std) {
  constexpr std::int64_t kMade = std::int64_t{1} << 21;
  Tensor& made = made_[{dtype, std}];
  if (made.empty()) {
    made = Tensor(dtype, {kMade});
    fill_normal(1, made_.size(), std, made.view());
  }
  Tensor out(dtype, shape, Device::cuda);
  const std::int64_t n = shape.numel(), skipped = (++num_normal_ * 15485863) % (kMade / 2);
  const TensorView flat = out.view().reshaped({n});
  std::int64_t filled = std::min(n, kMade - skipped);
  if (filled > 0) copy(stream_, made.view().rows(skipped, skipped + filled), flat.rows(0, filled));
  while (filled < n) {
    const std::int64_t more = std::min(filled, n - filled);
    copy(stream_, flat.rows(0, more), flat.rows(filled, filled + more));
    filled += more;
  }
  return out;
}

std::vector<Timing> Bench::time(const std::vector<std::function<void()>>& calls) {
  using Clock = std::chrono::steady_clock;
  for (const auto& call : calls) call();
  stream_.synchronize();
  const auto begin = Clock::now();
  for (const auto& call : calls) call();
  stream_.synchronize();
  const double ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count() /
                    static_cast<double>(calls.size());
  const int repeats =
      tiny_ ? 1 : std::clamp(static_cast<int>(kMsPerCase / std::max(ms, 1e-3)), kMinRepeats, kMaxRepeats);
  std::vector<std::vector<std::pair<TimeStamp, TimeStamp>>> stamps(calls.size());
  for (int i = 0; i < repeats; ++i)
    for (std::size_t c = 0; c < calls.size(); ++c) {
      auto& [before, after] = stamps[c].emplace_back();
      ops::sum(stream_, other_data_.view(), other_sum_.view());
      before.record(stream_);
      calls[c]();
      after.record(stream_);
    }
  stream_.synchronize();
  std::vector<Timing> timings;
  for (const auto& of_call : stamps) {
    std::vector<double> times;
    for (const auto& [before, after] : of_call) times.push_back(after.ms_since(before));
    timings.push_back(summary(std::move(times)));
  }
  return timings;
}

void Bench::print(const Row& row) {
  std::printf(
      "{\"case\": %s, \"group\": %s, \"dtype\": \"%s\", \"shape\": %s, \"ms\": %.5f, \"min_ms\": %.5f, "
      "\"max_ms\": %.5f, \"repeats\": %d",
      quoted(row.name).c_str(), quoted(row.group).c_str(), to_string(row.dtype), quoted(row.shape).c_str(),
      row.timing.median_ms, row.timing.min_ms, row.timing.max_ms, row.timing.repeats);
  if (row.gflop > 0) std::printf(", \"gflop\": %.6f", row.gflop);
  if (row.gigabytes > 0)
    std::printf(", \"gigabytes\": %.9f, \"bytes_formula\": %s", row.gigabytes, quoted(row.bytes).c_str());
  if (!row.reference.empty())
    std::printf(", \"reference\": %s, \"reference_ms\": %.5f", quoted(row.reference).c_str(),
                row.reference_ms);
  if (row.rows_per_expert > 0)
    std::printf(", \"rows_per_expert\": %lld", static_cast<long long>(row.rows_per_expert));
  std::printf("}\n");
  std::fflush(stdout);
}

void Bench::run(const std::string& name, const std::function<void()>& body) {
  const auto line = [&](const char* key, const std::string& why) {
    std::printf("{\"case\": %s, \"%s\": %s}\n", quoted(name).c_str(), key, quoted(why).c_str());
    std::fflush(stdout);
  };
  if (seconds_since_start() > seconds_)
    return line("not_run", "out of time after " + std::to_string(static_cast<int>(seconds_)) + " s");
  try {
    body();
    arena_.reset();
  } catch (const std::exception& e) {
    arena_.reset();
    failed_ = true;
    line("error", e.what());
  }
}

double Bench::seconds_since_start() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void copy_case(Bench& bench) {
  bench.run("copy", [&] {
    const std::int64_t bytes = bench.tiny() ? 4096 : std::int64_t{1} << 30;
    const Tensor from = bench.normal(DType::f32, {bytes / 4}), to = Bench::zeros(DType::f32, {bytes / 4});
    const Timing timing = bench.time([&] { copy(bench.stream(), from.view(), to.view()); });
    bench.print({"copy", "copy", DType::f32, text("bytes ", bytes), timing, 0,
                 giga(2.0 * static_cast<double>(bytes)), "2 n"});
  });
}

}  // namespace moecollab::bench
