// Twin: ops/cpu/embedding.cpp.
#include "ops/cuda/embedding.hpp"

#include "ops/cuda/elements.cuh"
#include "ops/cuda/host_tables.cuh"
#include "ops/cuda/sort_ids.hpp"

namespace moecollab::ops::cuda {
namespace {

constexpr int kThreads = 256;

// y[t] = table[tokens[t]], a pack of 16 bytes per thread. Moves 2 T D elements. The ids are not looked at.
template <class T>
__global__ void forward_kernel(const std::int32_t* tokens, const T* table, std::int64_t num_tokens,
                               std::int64_t D, std::int64_t packs, bool aligned, T* y) {
  constexpr int kN = kPack<T>;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= num_tokens * packs) return;
  const std::int64_t t = at / packs, d = at % packs * kN;
  float v[kN];
  load_some<kN>(table + tokens[t] * D + d, D - d, aligned, v);
  store_some<kN>(y + t * D + d, D - d, aligned, v);
}

// d_table[v] += dy[t] for the tokens t that are v, in ascending order of t, from the tokens sorted by id
// (stable): the block at the first place of a run of equal ids adds the rows of the run, every thread its own
// columns, one after the other in f32, which is the order of the twin; the other blocks end at once. A run is
// one chain of additions, so the time is at least that of the longest run; several rows are on their way at
// once. Reads T D elements and moves 2 D f32 values per distinct id.
template <class T>
__global__ void add_runs_kernel(const std::int32_t* sorted_ids, const std::int32_t* sorted_t, const T* dy,
                                std::int64_t num_tokens, std::int64_t D, int panels, int width, bool aligned,
                                float* d_table) {
  constexpr int kN = kPack<T>, kAhead = 4;
  const std::int64_t begin = blockIdx.x / static_cast<unsigned>(panels);
  const std::int32_t id = sorted_ids[begin];
  if (begin > 0 && sorted_ids[begin - 1] == id) return;
  const std::int64_t d =
      (static_cast<std::int64_t>(blockIdx.x % static_cast<unsigned>(panels)) * width + threadIdx.x) * kN;
  if (d >= D) return;
  float* const to = d_table + id * D + d;
  float sum[kN];
#pragma unroll
  for (int k = 0; k < kN; ++k) sum[k] = d + k < D ? to[k] : 0.0f;
  bool more = true;
  for (std::int64_t i = begin; more; i += kAhead) {
    bool in_run[kAhead];
    float rows[kAhead][kN];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) in_run[a] = i + a < num_tokens && sorted_ids[i + a] == id;
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (in_run[a]) load_some<kN>(dy + sorted_t[i + a] * D + d, D - d, aligned, rows[a]);
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (in_run[a]) {
#pragma unroll
        for (int k = 0; k < kN; ++k) sum[k] += rows[a][k];
      }
    more = in_run[kAhead - 1];
  }
#pragma unroll
  for (int k = 0; k < kN; ++k)
    if (d + k < D) to[k] = sum[k];
}

}  // namespace

template <class A>
void embedding_forward(Stream& stream, const std::int32_t* tokens, const A* table, std::int64_t T,
                       std::int64_t D, A* y) {
  using N = Native<A>;
  if (T == 0 || D == 0) return;
  const std::int64_t packs = (D + kPack<N> - 1) / kPack<N>;
  MC_LAUNCH(forward_kernel<N>,
            (gpu::Launch{dim3(blocks_for(T * packs, kThreads)), dim3(kThreads), cuda_stream(stream)}), tokens,
            native(table), T, D, packs, rows_aligned<N>(D, {table, y}), native(y));
}

template <class A>
void embedding_backward(Stream& stream, const std::int32_t* tokens, const A* dy, std::int64_t T,
                        std::int64_t V, std::int64_t D, float* d_table) {
  using N = Native<A>;
  if (T == 0 || D == 0) return;
  const SortedIds sorted = sort_ids(stream, tokens, T, V);
  const std::int64_t packs = (D + kPack<N> - 1) / kPack<N>;
  const std::int64_t width =
      packs < 64 ? (packs + 31) / 32 * 32 : 64;  // threads; narrow, for many blocks a run
  const std::int64_t panels = (packs + width - 1) / width;
  MC_LAUNCH(add_runs_kernel<N>,
            (gpu::Launch{dim3(static_cast<unsigned>(T * panels)), dim3(static_cast<unsigned>(width)),
                         cuda_stream(stream)}),
            sorted.ids, sorted.positions, native(dy), T, D, static_cast<int>(panels), static_cast<int>(width),
            rows_aligned<N>(D, {dy}), d_table);
}

#define MC_INSTANTIATE(A)                                                                                 \
  template void embedding_forward<A>(Stream&, const std::int32_t*, const A*, std::int64_t, std::int64_t,  \
                                     A*);                                                                 \
  template void embedding_backward<A>(Stream&, const std::int32_t*, const A*, std::int64_t, std::int64_t, \
                                      std::int64_t, float*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
