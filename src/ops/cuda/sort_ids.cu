// A stable radix sort without atomics, digits of eight bits from the lowest: per pass the digits of each
// block are counted, the counts summed up to the places where each block's ids of each digit go, and the ids
// moved there. Everything is integer and every place has one writer, so the result has one possible value.
#include "ops/cuda/sort_ids.hpp"

#include <bit>
#include <utility>

#include "ops/cuda/elements.cuh"
#include "ops/cuda/host_tables.cuh"

namespace moecollab::ops::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kDigits = 256;
constexpr int kOfLane = 8;             // ids of a lane
constexpr int kOfWarp = 32 * kOfLane;  // neighbours
constexpr int kOfBlock = kWarps * kOfWarp;
constexpr unsigned kNone = 0xffffffffu;  // digit of a place past the end

__device__ inline unsigned digit_of(const std::int32_t* ids, std::int64_t at, std::int64_t count, int shift) {
  return at < count ? (static_cast<unsigned>(ids[at]) >> shift) % kDigits : kNone;
}

// Adds the digits of 32 neighbours to the counters of their warp: of the lanes with one digit the first adds
// for all. Returns how many of them come before this lane.
__device__ inline int count_digit(unsigned digit, int* counters, int* before_round) {
  const unsigned peers = __match_any_sync(0xffffffffu, digit);
  const unsigned lane = threadIdx.x % 32;
  const int rank = __popc(peers & ((1u << lane) - 1));
  if (digit != kNone) *before_round = counters[digit];
  __syncwarp();
  if (digit != kNone && rank == 0) counters[digit] += __popc(peers);
  __syncwarp();
  return rank;
}

// counts[block][digit], a warp per 256 neighbours, a thread per digit for the sum over the warps.
__global__ void count_kernel(const std::int32_t* ids, std::int64_t count, int shift, std::int32_t* counts) {
  MC_SHARED(int, counters, [kWarps][kDigits]);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int w = 0; w < kWarps; ++w) counters[w][threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kOfBlock + warp * kOfWarp;
  int before = 0;
  for (int round = 0; round < kOfLane; ++round)
    count_digit(digit_of(ids, first + round * 32 + lane, count, shift), counters[warp], &before);
  __syncthreads();
  int sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += counters[w][threadIdx.x];
  counts[static_cast<std::int64_t>(blockIdx.x) * kDigits + threadIdx.x] = sum;
}

// counts becomes the place of each block's first id of each digit: digits in order, blocks in order within.
// One block, a thread per digit.
__global__ void places_kernel(std::int64_t num_blocks, std::int32_t* counts) {
  MC_SHARED(int, totals, [kDigits]);
  int total = 0;
  for (std::int64_t b = 0; b < num_blocks; ++b) total += counts[b * kDigits + threadIdx.x];
  totals[threadIdx.x] = total;
  __syncthreads();
  int place = 0;
  for (unsigned digit = 0; digit < threadIdx.x; ++digit) place += totals[digit];
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    std::int32_t* const at = counts + b * kDigits + threadIdx.x;
    const int here = *at;
    *at = place;
    place += here;
  }
}

// Moves each id, and where it stood at first (`positions`, null in the first pass), to its place. Reads and
// writes 8 bytes an id.
__global__ void move_kernel(const std::int32_t* ids, const std::int32_t* positions, std::int64_t count,
                            int shift, const std::int32_t* places, std::int32_t* ids_out,
                            std::int32_t* positions_out) {
  MC_SHARED(int, counters, [kWarps][kDigits]);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int w = 0; w < kWarps; ++w) counters[w][threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kOfBlock + warp * kOfWarp;
  int offsets[kOfLane];  // among the ids of this digit in this warp
  for (int round = 0; round < kOfLane; ++round) {
    int before = 0;
    const int rank =
        count_digit(digit_of(ids, first + round * 32 + lane, count, shift), counters[warp], &before);
    offsets[round] = before + rank;
  }
  __syncthreads();
  int place = places[static_cast<std::int64_t>(blockIdx.x) * kDigits + threadIdx.x];
  for (int w = 0; w < kWarps; ++w) {
    const int here = counters[w][threadIdx.x];
    counters[w][threadIdx.x] = place;
    place += here;
  }
  __syncthreads();
  for (int round = 0; round < kOfLane; ++round) {
    const std::int64_t from = first + round * 32 + lane;
    const unsigned digit = digit_of(ids, from, count, shift);
    if (digit == kNone) continue;
    const int to = counters[warp][digit] + offsets[round];
    ids_out[to] = ids[from];
    positions_out[to] = positions == nullptr ? static_cast<std::int32_t>(from) : positions[from];
  }
}

}  // namespace

SortedIds sort_ids(Stream& stream, const std::int32_t* ids, std::int64_t T, std::int64_t V) {
  const std::int64_t num_blocks = (T + kOfBlock - 1) / kOfBlock;
  ScratchLayout layout;
  const std::int64_t counts_at = layout.add<std::int32_t>(num_blocks * kDigits);
  const std::int64_t first_at = layout.add<std::int32_t>(2 * T), second_at = layout.add<std::int32_t>(2 * T);
  void* const scratch = stream.scratch(layout.bytes);
  auto* const counts = part_of<std::int32_t>(scratch, counts_at);
  auto* to = part_of<std::int32_t>(scratch, first_at);
  auto* other = part_of<std::int32_t>(scratch, second_at);
  const std::int32_t *from_ids = ids, *from_positions = nullptr;
  const cudaStream_t native_stream = cuda_stream(stream);
  const gpu::Launch by_ids{dim3(static_cast<unsigned>(num_blocks)), dim3(kThreads), native_stream};
  const int bits = std::bit_width(static_cast<std::uint64_t>(V > 1 ? V - 1 : 1));
  for (int shift = 0; shift < bits; shift += 8) {
    MC_LAUNCH(count_kernel, by_ids, from_ids, T, shift, counts);
    MC_LAUNCH(places_kernel, (gpu::Launch{dim3(1), dim3(kThreads), native_stream}), num_blocks, counts);
    MC_LAUNCH(move_kernel, by_ids, from_ids, from_positions, T, shift,
              static_cast<const std::int32_t*>(counts), to, to + T);
    from_ids = to;
    from_positions = to + T;
    std::swap(to, other);
  }
  return {from_ids, from_positions};
}

}  // namespace moecollab::ops::cuda
