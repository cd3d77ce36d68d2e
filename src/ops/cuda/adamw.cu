// Twin: ops/cpu/adamw.cpp.
#include "ops/cuda/adamw.hpp"

#include <vector>

#include "moecollab/numerics/adamw.hpp"
#include "ops/cuda/elements.cuh"
#include "ops/cuda/host_tables.cuh"

namespace moecollab::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPacks = 4;  // of 4 elements a thread
constexpr std::int64_t kBlock = std::int64_t{kThreads} * 4 * kPacks;

struct Range {
  const float* grad;
  float *master, *exp_avg, *exp_avg_sq;
  void* value;  // null: there is none
  bool value_is_bf16, aligned;
  std::int64_t n;
  std::int64_t first;  // its first block
  numerics::AdamWFactors<float> factors;
};

// One element of each of many ranges per step of the paper (numerics/adamw.hpp), all ranges in one launch: a
// block finds its range by the blocks before it and updates kBlock elements in packs of four, in f32. Nothing
// is summed. Moves 28 bytes an element, and 2 or 4 more where there is a value.
__global__ void adamw_kernel(const Range* ranges, std::int64_t num_ranges) {
  const Range range = entry_of(ranges, num_ranges, blockIdx.x);
  const std::int64_t begin = (blockIdx.x - range.first) * kBlock;
#pragma unroll
  for (int pack = 0; pack < kPacks; ++pack) {
    const std::int64_t i = begin + (pack * kThreads + static_cast<int>(threadIdx.x)) * 4, valid = range.n - i;
    if (valid <= 0) return;
    float grad[4], master[4], exp_avg[4], exp_avg_sq[4];
    load_some<4>(range.grad + i, valid, range.aligned, grad);
    load_some<4>(range.master + i, valid, range.aligned, master);
    load_some<4>(range.exp_avg + i, valid, range.aligned, exp_avg);
    load_some<4>(range.exp_avg_sq + i, valid, range.aligned, exp_avg_sq);
#pragma unroll
    for (int k = 0; k < 4; ++k)
      master[k] = numerics::adamw_step(range.factors, grad[k], master[k], exp_avg[k], exp_avg_sq[k]);
    store_some<4>(range.master + i, valid, range.aligned, master);
    store_some<4>(range.exp_avg + i, valid, range.aligned, exp_avg);
    store_some<4>(range.exp_avg_sq + i, valid, range.aligned, exp_avg_sq);
    if (range.value == nullptr) continue;
    if (range.value_is_bf16)
      store_some<4>(static_cast<__nv_bfloat16*>(range.value) + i, valid, range.aligned, master);
    else
      store_some<4>(static_cast<float*>(range.value) + i, valid, range.aligned, master);
  }
}

}  // namespace

void adamw_update(Stream& stream, std::span<const AdamWRange> ranges, const AdamWOptions& o) {
  std::vector<Range> list;
  std::int64_t num_blocks = 0;
  for (const AdamWRange& r : ranges) {
    const std::int64_t n = r.grad.numel();
    if (n == 0) continue;
    list.push_back(
        {r.grad.as<float>(), r.master.as<float>(), r.exp_avg.as<float>(), r.exp_avg_sq.as<float>(),
         r.value.data, r.value.dtype == DType::bf16,
         aligned_to(16, {r.grad.data, r.master.data, r.exp_avg.data, r.exp_avg_sq.data, r.value.data}), n,
         num_blocks,
         numerics::AdamWFactors<float>(o.learning_rate, o.beta1, o.beta2, o.eps, r.weight_decay, o.grad_scale,
                                       r.step)});
    num_blocks += (n + kBlock - 1) / kBlock;
  }
  if (list.empty()) return;
  const auto num_ranges = static_cast<std::int64_t>(list.size());
  auto* const device_list =
      static_cast<Range*>(stream.scratch(num_ranges * static_cast<std::int64_t>(sizeof(Range))));
  send(stream, std::span<const Range>(list), device_list);
  MC_LAUNCH(adamw_kernel,
            (gpu::Launch{dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads), cuda_stream(stream)}),
            device_list, num_ranges);
}

}  // namespace moecollab::ops::cuda
