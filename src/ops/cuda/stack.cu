// Twin: ops/cpu/stack.cpp.
#include "ops/cuda/stack.hpp"

#include "ops/cuda/elements.cuh"
#include "ops/cuda/host_tables.cuh"

namespace moecollab::ops::cuda {
namespace {

constexpr int kThreads = 256;

// stacked[i] = rows[i] (kBack = false) or rows[i] += stacked[i], rows of n elements that lie anywhere: a
// thread per element of `stacked`, nothing summed twice. Moves 2 and 3 times the elements. Rows may be null
// when they are added to.
template <bool kBack, class Row, class Stacked>
__global__ void rows_kernel(Row* const* rows, std::int64_t n, std::int64_t total, Stacked* stacked) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= total) return;
  Row* const row = rows[at / n];
  if constexpr (kBack) {
    if (row == nullptr) return;
    store(row + at % n, load(row + at % n) + load(stacked + at));
  } else {
    stacked[at] = row[at % n];
  }
}

template <bool kBack, class Row, class Stacked>
void launch(Stream& stream, std::span<Row* const> rows, std::int64_t n, Stacked* stacked) {
  const std::int64_t total = static_cast<std::int64_t>(rows.size()) * n;
  if (total == 0) return;
  const std::int64_t bytes = static_cast<std::int64_t>(rows.size_bytes());
  Row** const table = static_cast<Row**>(stream.scratch(bytes));
  send(stream, rows, table);
  MC_LAUNCH((rows_kernel<kBack, Row, Stacked>),
            (gpu::Launch{dim3(blocks_for(total, kThreads)), dim3(kThreads), cuda_stream(stream)}), table, n,
            total, stacked);
}

}  // namespace

template <class A>
void stack_rows(Stream& stream, std::span<const A* const> rows, std::int64_t n, A* out) {
  std::span<const Native<A>* const> list(reinterpret_cast<const Native<A>* const*>(rows.data()), rows.size());
  launch<false>(stream, list, n, native(out));
}

template <class A>
void add_to_rows(Stream& stream, const A* in, std::int64_t n, std::span<A* const> rows) {
  std::span<Native<A>* const> list(reinterpret_cast<Native<A>* const*>(rows.data()), rows.size());
  launch<true>(stream, list, n, native(in));
}

#define MC_INSTANTIATE(A)                                                            \
  template void stack_rows<A>(Stream&, std::span<const A* const>, std::int64_t, A*); \
  template void add_to_rows<A>(Stream&, const A*, std::int64_t, std::span<A* const>);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
MC_INSTANTIATE(double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
