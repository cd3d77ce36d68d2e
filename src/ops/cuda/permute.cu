#include "ops/cuda/permute.hpp"

#include "ops/cuda/rows.cuh"

namespace moecollab::ops::cuda {

namespace {

// y[i] = x[index[i] / divisor], zeros where index[i] = -1. A group of lanes moves one row, Unit by Unit, four
// loads in flight. Bytes moved: rows * (2 * row_bytes + 4). Reproducible: a copy.
template <class Unit>
__global__ void gather_rows_kernel(const Unit* __restrict__ x, const std::int32_t* __restrict__ index,
                                   std::int64_t divisor, std::int64_t rows, std::int64_t units, int log_lanes,
                                   Unit* __restrict__ y) {
  const std::int64_t row = row_of_thread(log_lanes);
  if (row >= rows) return;
  const std::int32_t from = __ldg(index + row);
  const Unit* source = x + (from < 0 ? 0 : from / divisor * units);
  Unit* target = y + row * units;
#pragma unroll 4
  for (std::int64_t u = lane_of_row(log_lanes); u < units; u += 1 << log_lanes)
    target[u] = from < 0 ? Unit{} : source[u];
}

template <class Unit>
void gather_units(Stream& stream, const void* x, const std::int32_t* index, std::int64_t divisor,
                  std::int64_t rows, std::int64_t row_bytes, void* y) {
  const std::int64_t units = row_bytes / static_cast<std::int64_t>(sizeof(Unit));
  const RowLanes lanes(units);
  MC_LAUNCH(gather_rows_kernel<Unit>, lanes.launch(rows, cuda_stream(stream)), static_cast<const Unit*>(x),
            index, divisor, rows, units, lanes.log_lanes, static_cast<Unit*>(y));
}

// y[t] = sum over k of weights[t,k] * rows[position[t,k]], k ascending, skipping -1; without weights each
// is 1. A group of lanes makes one row of y, N columns per lane at a time, each with one f32 sum in the order
// of k: that order is all the result depends on. Bytes moved: dim * sizeof(T) * (T + picks that stay) + 8 * T
// * K.
template <class T, int N>
__global__ void combine_rows_kernel(const T* __restrict__ rows, const std::int32_t* __restrict__ position,
                                    const float* __restrict__ weights, std::int64_t tokens, int picks,
                                    std::int64_t dim, int log_lanes, T* __restrict__ y) {
  const std::int64_t token = row_of_thread(log_lanes);
  if (token >= tokens) return;
  position += token * picks;
  if (weights != nullptr) weights += token * picks;
  for (std::int64_t d = lane_of_row(log_lanes) * N; d < dim; d += N << log_lanes) {
    float sum[N] = {};
#pragma unroll 4
    for (int k = 0; k < picks; ++k) {
      const std::int64_t from = __ldg(position + k);
      if (from < 0) continue;
      const float weight = weights != nullptr ? __ldg(weights + k) : 1.0f;
      const auto piece = *reinterpret_cast<const Piece<T, N>*>(rows + from * dim + d);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += weight * to_float(piece.values[i]);
    }
    Piece<T, N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) from_float(sum[i], out.values[i]);
    *reinterpret_cast<Piece<T, N>*>(y + token * dim + d) = out;
  }
}

// Row i belongs to the pick order[i] of token t: d_rows[i] = weights[pick] * dy[t], d_weights[pick] =
// <dy[t], rows[i]>; zeros and nothing where order[i] = -1. A group of lanes works on one row, reading dy once
// for both. The sum in f32: each lane over its own pieces in order, then a tree over the lanes, both fixed by
// dim. Bytes moved: R * (3 * dim * sizeof(T) + 12).
template <class T, int N>
__global__ void combine_rows_backward_kernel(const T* __restrict__ dy, const T* __restrict__ rows,
                                             const std::int32_t* __restrict__ order,
                                             const float* __restrict__ weights, int picks,
                                             std::int64_t num_rows, std::int64_t dim, int log_lanes,
                                             T* __restrict__ d_rows, float* __restrict__ d_weights) {
  const std::int64_t row = row_of_thread(log_lanes);
  const int lane = lane_of_row(log_lanes);
  const std::int32_t pick = row < num_rows ? __ldg(order + row) : -1;
  float dot = 0.0f;
  if (row < num_rows) {
    const float weight = pick < 0 ? 0.0f : __ldg(weights + pick);
    const T* dy_row = dy + (pick < 0 ? 0 : pick / picks * dim);
    const T* in_row = rows + row * dim;
    T* out_row = d_rows + row * dim;
#pragma unroll 2
    for (std::int64_t d = lane * N; d < dim; d += N << log_lanes) {
      Piece<T, N> out;
      if (pick < 0) {
#pragma unroll
        for (int i = 0; i < N; ++i) from_float(0.0f, out.values[i]);
      } else {
        const auto gradient = *reinterpret_cast<const Piece<T, N>*>(dy_row + d);
        const auto piece = *reinterpret_cast<const Piece<T, N>*>(in_row + d);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float g = to_float(gradient.values[i]);
          dot += g * to_float(piece.values[i]);
          from_float(weight * g, out.values[i]);
        }
      }
      *reinterpret_cast<Piece<T, N>*>(out_row + d) = out;
    }
  }
  for (int step = (1 << log_lanes) / 2; step > 0; step /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, step);
  if (lane == 0 && pick >= 0) d_weights[pick] = dot;
}

// f(number of elements that move at once): 16 bytes where rows and pointers are multiples of that, else one.
template <class T, class F>
void with_piece(std::int64_t dim, std::initializer_list<const void*> pointers, F&& f) {
  constexpr int kWide = 16 / sizeof(T);
  if (dim % kWide == 0 && aligned_to(16, pointers)) return f.template operator()<kWide>();
  f.template operator()<1>();
}

}  // namespace

void gather_rows(Stream& stream, const void* x, const std::int32_t* index, std::int64_t divisor,
                 std::int64_t rows, std::int64_t row_bytes, void* y) {
  if (rows == 0 || row_bytes == 0) return;
  const auto fits = [&](std::int64_t bytes) { return row_bytes % bytes == 0 && aligned_to(bytes, {x, y}); };
  if (fits(16)) return gather_units<uint4>(stream, x, index, divisor, rows, row_bytes, y);
  if (fits(4)) return gather_units<std::uint32_t>(stream, x, index, divisor, rows, row_bytes, y);
  if (fits(2)) return gather_units<std::uint16_t>(stream, x, index, divisor, rows, row_bytes, y);
  gather_units<std::uint8_t>(stream, x, index, divisor, rows, row_bytes, y);
}

template <class T>
void combine_rows(Stream& stream, const T* rows, const std::int32_t* position_of_pick, const float* weights,
                  std::int64_t tokens, std::int64_t picks, std::int64_t dim, T* y) {
  if (tokens == 0 || dim == 0) return;
  using D = typename OnDevice<T>::type;
  with_piece<T>(dim, {rows, y}, [&]<int N>() {
    const RowLanes lanes((dim + N - 1) / N);
    MC_LAUNCH((combine_rows_kernel<D, N>), lanes.launch(tokens, cuda_stream(stream)),
              reinterpret_cast<const D*>(rows), position_of_pick, weights, tokens, static_cast<int>(picks),
              dim, lanes.log_lanes, reinterpret_cast<D*>(y));
  });
}

template <class T>
void combine_rows_backward(Stream& stream, const T* dy, const T* rows, const std::int32_t*,
                           const std::int32_t* order, const float* weights, std::int64_t tokens,
                           std::int64_t picks, std::int64_t num_rows, std::int64_t dim, T* d_rows,
                           float* d_weights) {
  using D = typename OnDevice<T>::type;
  if (tokens * picks > 0)  // for the picks that no row pulls
    check_cuda(cudaMemsetAsync(d_weights, 0, static_cast<std::size_t>(tokens * picks) * sizeof(float),
                               cuda_stream(stream)),
               "cudaMemsetAsync");
  if (num_rows == 0) return;
  with_piece<T>(dim, {dy, rows, d_rows}, [&]<int N>() {
    const RowLanes lanes((dim + N - 1) / N);
    MC_LAUNCH((combine_rows_backward_kernel<D, N>), lanes.launch(num_rows, cuda_stream(stream)),
              reinterpret_cast<const D*>(dy), reinterpret_cast<const D*>(rows), order, weights,
              static_cast<int>(picks), num_rows, dim, lanes.log_lanes, reinterpret_cast<D*>(d_rows),
              d_weights);
  });
}

#define MC_INSTANTIATE(T)                                                                               \
  template void combine_rows<T>(Stream&, const T*, const std::int32_t*, const float*, std::int64_t,     \
                                std::int64_t, std::int64_t, T*);                                        \
  template void combine_rows_backward<T>(Stream&, const T*, const T*, const std::int32_t*,              \
                                         const std::int32_t*, const float*, std::int64_t, std::int64_t, \
                                         std::int64_t, std::int64_t, T*, float*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
