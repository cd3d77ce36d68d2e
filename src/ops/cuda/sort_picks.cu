#include "ops/cuda/sort_picks.hpp"

#include <algorithm>

#include "ops/cuda/host_tables.cuh"
#include "ops/cuda/warp.cuh"

namespace moecollab::ops::cuda {

namespace {

constexpr int kWarps = 4;  // warps of a block that walks over picks, each with counters of its own
constexpr std::int64_t kChunk = 1024;  // picks of a warp
constexpr int kScanThreads = 256;

// write(i, sum of value(j), j < i) for i in [0, n) in order; returns the sum of all. A block of kScanThreads.
template <class Value, class Write>
__device__ std::int64_t block_scan(std::int64_t n, Value value, Write write) {
  MC_SHARED(std::int64_t, of_warp, [kScanThreads / 32]);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  std::int64_t before = 0;
  for (std::int64_t begin = 0; begin < n; begin += kScanThreads) {
    const std::int64_t i = begin + threadIdx.x;
    const std::int64_t mine = i < n ? value(i) : 0;
    const std::int64_t upto = warp_prefix(mine);
    if (lane_id() == 31) of_warp[warp] = upto;
    __syncthreads();
    std::int64_t left = before;
    for (int w = 0; w < kScanThreads / 32; ++w) {
      if (w < warp) left += of_warp[w];
      before += of_warp[w];
    }
    if (i < n) write(i, left + upto - mine);
    __syncthreads();
  }
  return before;
}

// One step of a warp over its chunk: for the pick of this lane its key (-1: none) and the lanes with the same
// key, itself among them.
struct Peers {
  std::int32_t key;
  unsigned lanes;
  __device__ int rank() const { return __popc(lanes & ((1u << lane_id()) - 1u)); }
  __device__ bool leads() const { return key >= 0 && rank() == 0; }
};
__device__ Peers peers_of(const std::int32_t* picks, std::int64_t pick, std::int64_t num_picks,
                          const std::int32_t* key_of_expert) {
  const std::int32_t expert = pick < num_picks ? __ldg(picks + pick) : -1;
  const std::int32_t key = expert < 0 ? -1 : __ldg(key_of_expert + expert);
  return {key, __match_any_sync(kAllLanes, static_cast<unsigned>(key))};
}

// histogram[key, chunk]: picks of each key in each chunk of kChunk picks. A warp per chunk counts in shared
// memory that no other warp touches, 32 picks at a time: lanes with the same key find each other and the
// first of them adds their number. Bytes moved: 4 * picks + 4 * keys * chunks.
__global__ void histogram_kernel(const std::int32_t* __restrict__ picks, std::int64_t num_picks,
                                 const std::int32_t* __restrict__ key_of_expert, int num_keys,
                                 std::int64_t num_chunks, std::int32_t* __restrict__ histogram) {
  MC_SHARED_DYNAMIC(std::int32_t, counters);
  const std::int64_t chunk = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (chunk >= num_chunks) return;
  std::int32_t* count = counters + threadIdx.x / 32 * num_keys;
  for (int key = lane_id(); key < num_keys; key += 32) count[key] = 0;
  __syncwarp();
  const std::int64_t begin = chunk * kChunk, end = min(num_picks, begin + kChunk);
  for (std::int64_t first = begin; first < end; first += 32) {
    const Peers peers = peers_of(picks, first + lane_id(), num_picks, key_of_expert);
    if (peers.leads()) count[peers.key] += __popc(peers.lanes);
    __syncwarp();
  }
  for (int key = lane_id(); key < num_keys; key += 32) histogram[key * num_chunks + chunk] = count[key];
}

// Turns histogram[key, :] into its exclusive sums, the rank of each chunk's first pick among those of the
// key, and counts[key] into the total. A warp per key. Bytes moved: 8 * keys * chunks.
__global__ void rank_kernel(int num_keys, std::int64_t num_chunks, std::int32_t* __restrict__ histogram,
                            std::int64_t* __restrict__ counts) {
  const int key = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (key >= num_keys) return;
  std::int32_t* row = histogram + key * num_chunks;
  std::int32_t before = 0;
  for (std::int64_t first = 0; first < num_chunks; first += 32) {
    const std::int64_t chunk = first + lane_id();
    const std::int32_t mine = chunk < num_chunks ? row[chunk] : 0;
    const std::int32_t upto = warp_prefix(mine);
    if (chunk < num_chunks) row[chunk] = before + upto - mine;
    before += __shfl_sync(kAllLanes, upto, 31);
  }
  if (lane_id() == 0) counts[key] = before;
}

// Where the rows of each key begin and how many of its picks stay. One block.
__global__ void place_kernel(const std::int64_t* __restrict__ counts, const std::int64_t* __restrict__ kept,
                             int num_keys, std::int64_t rows_per_key, std::int32_t* __restrict__ begin,
                             std::int32_t* __restrict__ size) {
  const auto stay = [&](std::int64_t key) {
    std::int64_t n = counts[key];
    if (kept != nullptr) n = min(n, kept[key]);
    return rows_per_key > 0 ? min(n, rows_per_key) : n;
  };
  block_scan(num_keys, stay, [&](std::int64_t key, std::int64_t sum) {
    begin[key] = static_cast<std::int32_t>(rows_per_key > 0 ? key * rows_per_key : sum);
    size[key] = static_cast<std::int32_t>(stay(key));
  });
}

// Writes the picks of a chunk to their rows, in order, as the histogram counted them: the rank of a pick is
// that of its chunk, plus the picks of its key before it in the chunk, so the result is that of a sequential
// stable sort. `order` holds -1 before. Bytes moved: 12 * picks + 4 * keys * chunks.
__global__ void scatter_kernel(const std::int32_t* __restrict__ picks, std::int64_t num_picks,
                               const std::int32_t* __restrict__ key_of_expert, int num_keys,
                               std::int64_t num_chunks, const std::int32_t* __restrict__ rank_of_chunk,
                               const std::int32_t* __restrict__ begin_of_key,
                               const std::int32_t* __restrict__ size_of_key, std::int32_t* __restrict__ order,
                               std::int32_t* __restrict__ position_of_pick) {
  MC_SHARED_DYNAMIC(std::int32_t, counters);
  const std::int64_t chunk = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (chunk >= num_chunks) return;
  std::int32_t* next = counters + threadIdx.x / 32 * num_keys;
  for (int key = lane_id(); key < num_keys; key += 32) next[key] = rank_of_chunk[key * num_chunks + chunk];
  __syncwarp();
  const std::int64_t begin = chunk * kChunk, end = min(num_picks, begin + kChunk);
  for (std::int64_t first = begin; first < end; first += 32) {
    const std::int64_t pick = first + lane_id();
    const Peers peers = peers_of(picks, pick, num_picks, key_of_expert);
    std::int32_t row = -1;
    if (peers.key >= 0) {
      const std::int32_t rank = next[peers.key] + peers.rank();
      if (rank < __ldg(size_of_key + peers.key)) row = __ldg(begin_of_key + peers.key) + rank;
    }
    __syncwarp();
    if (peers.leads()) next[peers.key] += __popc(peers.lanes);
    __syncwarp();
    if (pick >= num_picks) continue;
    position_of_pick[pick] = row;
    if (row >= 0) order[row] = static_cast<std::int32_t>(pick);
  }
}

// A thread per key walks over the ranks. Bytes moved: 16 * P * E.
__global__ void capacity_kernel(std::int64_t capacity, std::int64_t ranks, std::int64_t num_keys,
                                std::int64_t* __restrict__ counts) {
  const std::int64_t key = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (key >= num_keys) return;
  std::int64_t left = capacity;
  for (std::int64_t s = 0; s < ranks; ++s) {
    const std::int64_t count = min(counts[s * num_keys + key], left);
    counts[s * num_keys + key] = count;
    left -= count;
  }
}

// The runs of rows that this rank received: run (key, s) has number (key - first_key) * P + s.
struct Runs {
  const std::int64_t* counts;
  std::int64_t ranks, num_keys, first_key, my_keys;
  std::int64_t begin, end;  // of the chunk
  std::int64_t rows_per_block, rows_per_expert;

  __device__ std::int64_t number() const { return my_keys * ranks; }
  __device__ std::int64_t count(std::int64_t key, std::int64_t source) const {
    const std::int64_t n = counts[source * num_keys + first_key + key];
    return rows_per_block > 0 ? min(n, rows_per_block) : n;
  }
  __device__ std::int64_t clip(std::int64_t position) const { return min(max(position, begin), end); }
};

// start[run]: where it begins in the whole expert order (start[number]: all rows). from[run]: where its rows
// within the chunk begin among those received, (source, key) by (source, key). One block; bytes moved: about
// 48 * P * keys.
__global__ void runs_kernel(Runs runs, std::int64_t* __restrict__ start, std::int64_t* __restrict__ from) {
  const std::int64_t total = block_scan(
      runs.number(), [&](std::int64_t i) { return runs.count(i / runs.ranks, i % runs.ranks); },
      [&](std::int64_t i, std::int64_t sum) { start[i] = sum; });
  if (threadIdx.x == 0) start[runs.number()] = total;
  __syncthreads();
  const auto run_of = [&](std::int64_t i) { return i % runs.my_keys * runs.ranks + i / runs.my_keys; };
  block_scan(
      runs.number(),
      [&](std::int64_t i) { return runs.clip(start[run_of(i) + 1]) - runs.clip(start[run_of(i)]); },
      [&](std::int64_t i, std::int64_t sum) { from[run_of(i)] = sum; });
}

// Packed: a thread per row of the chunk looks up its run. Both orders hold -1 before. Bytes moved: 8 * rows.
__global__ void packed_orders_kernel(Runs runs, const std::int64_t* __restrict__ start,
                                     const std::int64_t* __restrict__ from,
                                     std::int32_t* __restrict__ expert_order,
                                     std::int32_t* __restrict__ receive_order) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t position = runs.begin + row;
  if (position >= runs.end || position >= start[runs.number()]) return;
  std::int64_t low = 0, high = runs.number() - 1;  // the last run that starts at or before the position
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (start[middle] <= position)
      low = middle;
    else
      high = middle - 1;
  }
  const std::int64_t received = from[low] + position - max(start[low], runs.begin);
  expert_order[row] = static_cast<std::int32_t>(received);
  receive_order[received] = static_cast<std::int32_t>(row);
}

// With gaps: a thread per received row. Both orders hold -1 before. Bytes moved: 8 * rows at most.
__global__ void spaced_orders_kernel(Runs runs, const std::int64_t* __restrict__ start,
                                     std::int64_t num_received, std::int32_t* __restrict__ expert_order,
                                     std::int32_t* __restrict__ receive_order) {
  const std::int64_t received = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (received >= num_received) return;
  const std::int64_t block = received / runs.rows_per_block, number = received % runs.rows_per_block;
  const std::int64_t source = block / runs.my_keys, key = block % runs.my_keys;
  if (number >= runs.count(key, source)) return;
  const std::int64_t at = start[key * runs.ranks + source] - start[key * runs.ranks] + number;
  if (at >= runs.rows_per_expert) return;
  const std::int64_t row = key * runs.rows_per_expert + at;
  expert_order[row] = static_cast<std::int32_t>(received);
  receive_order[received] = static_cast<std::int32_t>(row);
}

dim3 blocks_of(std::int64_t n, std::int64_t per_block) {
  return dim3(static_cast<unsigned>((n + per_block - 1) / per_block));
}

void fill_minus_one(Stream& stream, std::int32_t* values, std::int64_t n) {
  if (n > 0)
    check_cuda(cudaMemsetAsync(values, 0xff, static_cast<std::size_t>(n) * sizeof(std::int32_t),
                               cuda_stream(stream)),
               "cudaMemsetAsync");
}

}  // namespace

void sort_picks(Stream& stream, const std::int32_t* picks, std::int64_t num_picks,
                std::span<const std::int32_t> key_of_expert, std::int64_t rows_per_key,
                const std::int64_t* kept, std::int64_t num_rows, std::int32_t* order,
                std::int32_t* position_of_pick, std::int64_t* counts) {
  fill_minus_one(stream, order, num_rows);
  const auto num_keys = static_cast<std::int64_t>(key_of_expert.size());
  if (num_keys == 0) return fill_minus_one(stream, position_of_pick, num_picks);
  const std::int64_t num_chunks = (num_picks + kChunk - 1) / kChunk;
  auto* keys = static_cast<std::int32_t*>(
      stream.scratch(static_cast<std::int64_t>(sizeof(std::int32_t)) * num_keys * (num_chunks + 3)));
  std::int32_t *begin = keys + num_keys, *size = begin + num_keys, *histogram = size + num_keys;
  send(stream, key_of_expert, keys);
  const cudaStream_t queue = cuda_stream(stream);
  const int n = static_cast<int>(num_keys);
  const dim3 warps(kWarps * 32);
  const gpu::Launch over_picks{blocks_of(num_chunks, kWarps), warps, queue,
                               static_cast<std::size_t>(kWarps * num_keys) * sizeof(std::int32_t)};
  if (num_chunks > 0)
    MC_LAUNCH(histogram_kernel, over_picks, picks, num_picks, keys, n, num_chunks, histogram);
  MC_LAUNCH(rank_kernel, (gpu::Launch{blocks_of(num_keys, kWarps), warps, queue}), n, num_chunks, histogram,
            counts);
  MC_LAUNCH(place_kernel, (gpu::Launch{dim3(1), dim3(kScanThreads), queue}), counts, kept, n, rows_per_key,
            begin, size);
  if (num_chunks > 0)
    MC_LAUNCH(scatter_kernel, over_picks, picks, num_picks, keys, n, num_chunks, histogram, begin, size,
              order, position_of_pick);
}

void apply_capacity(Stream& stream, std::int64_t capacity, std::int64_t ranks, std::int64_t num_keys,
                    std::int64_t* counts) {
  if (ranks * num_keys == 0) return;
  MC_LAUNCH(capacity_kernel, (gpu::Launch{blocks_of(num_keys, 64), dim3(64), cuda_stream(stream)}), capacity,
            ranks, num_keys, counts);
}

void received_orders(Stream& stream, const std::int64_t* counts, std::int64_t ranks, std::int64_t num_keys,
                     const ReceivedRows& rows, std::int64_t num_received, std::int32_t* expert_order,
                     std::int32_t* receive_order) {
  fill_minus_one(stream, expert_order, rows.end - rows.begin);
  fill_minus_one(stream, receive_order, num_received);
  const std::int64_t my_keys = rows.end_key - rows.first_key, num_runs = my_keys * ranks;
  if (num_runs == 0 || num_received == 0) return;
  auto* start = static_cast<std::int64_t*>(
      stream.scratch(static_cast<std::int64_t>(sizeof(std::int64_t)) * (2 * num_runs + 1)));
  std::int64_t* from = start + num_runs + 1;
  const Runs runs{counts,
                  ranks,
                  num_keys,
                  rows.first_key,
                  my_keys,
                  rows.begin,
                  rows.end,
                  rows.rows_per_block,
                  rows.rows_per_expert};
  const cudaStream_t queue = cuda_stream(stream);
  MC_LAUNCH(runs_kernel, (gpu::Launch{dim3(1), dim3(kScanThreads), queue}), runs, start, from);
  const gpu::Launch over_rows{blocks_of(num_received, 256), dim3(256), queue};
  if (rows.rows_per_block > 0)
    MC_LAUNCH(spaced_orders_kernel, over_rows, runs, start, num_received, expert_order, receive_order);
  else
    MC_LAUNCH(packed_orders_kernel, over_rows, runs, start, from, expert_order, receive_order);
}

}  // namespace moecollab::ops::cuda
