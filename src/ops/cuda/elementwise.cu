// Twin: ops/cpu/elementwise.cpp.
#include "ops/cuda/elementwise.hpp"

#include "ops/cuda/host_tables.cuh"
#include "ops/cuda/map.cuh"

namespace moecollab::ops::cuda {
namespace {

template <class In, class Out>
struct Cast {
  __device__ void operator()(const In (&x)[1], Out (&y)[1]) const { y[0] = static_cast<Out>(x[0]); }
};
template <class R>
struct Add {
  __device__ void operator()(const R (&x)[2], R (&y)[1]) const { y[0] = x[0] + x[1]; }
};
template <class R>
struct Scale {
  R factor;
  __device__ void operator()(const R (&x)[1], R (&y)[1]) const { y[0] = factor * x[0]; }
};

// y[offsets[i]] += values[i]: a thread per offset, each of which is there once.
template <class T>
__global__ void add_scalars_kernel(const std::int64_t* offsets, const double* values, std::int64_t n, T* y) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  T* const to = y + offsets[i];
  store(to, load(to) + static_cast<Real<T>>(values[i]));
}

}  // namespace

template <class From, class To>
void cast(Stream& stream, const From* x, std::int64_t n, To* y) {
  using In = Native<From>;
  using Out = Native<To>;
  map(stream, Operands<In, Out, 1, 1>{{native(x)}, {native(y)}}, n, Cast<Real<In>, Real<Out>>{});
}

template <class A>
void add(Stream& stream, const A* x, std::int64_t n, A* y) {
  using T = Native<A>;
  map(stream, Operands<T, T, 2, 1>{{native(y), native(x)}, {native(y)}}, n, Add<Real<T>>{});
}

template <class A>
void scale(Stream& stream, double factor, std::int64_t n, A* y) {
  using T = Native<A>;
  map(stream, Operands<T, T, 1, 1>{{native(y)}, {native(y)}}, n,
      Scale<Real<T>>{static_cast<Real<T>>(factor)});
}

template <class A>
void add_scalars(Stream& stream, std::span<const std::int64_t> offsets, std::span<const double> values,
                 A* y) {
  const auto n = static_cast<std::int64_t>(offsets.size());
  if (n == 0) return;
  ScratchLayout layout;
  const std::int64_t offsets_at = layout.add<std::int64_t>(n), values_at = layout.add<double>(n);
  void* const scratch = stream.scratch(layout.bytes);
  auto* const device_offsets = part_of<std::int64_t>(scratch, offsets_at);
  auto* const device_values = part_of<double>(scratch, values_at);
  send(stream, offsets, device_offsets);
  send(stream, values, device_values);
  constexpr int kThreads = 128;
  MC_LAUNCH(add_scalars_kernel<Native<A>>,
            (gpu::Launch{dim3(blocks_for(n, kThreads)), dim3(kThreads), cuda_stream(stream)}), device_offsets,
            device_values, n, native(y));
}

#define MC_CAST(From)                                                                \
  template void cast<From, float>(Stream&, const From*, std::int64_t, float*);       \
  template void cast<From, BFloat16>(Stream&, const From*, std::int64_t, BFloat16*); \
  template void cast<From, double>(Stream&, const From*, std::int64_t, double*);
MC_CAST(float)
MC_CAST(BFloat16)
MC_CAST(double)
#undef MC_CAST

#define MC_INSTANTIATE(A)                                    \
  template void add<A>(Stream&, const A*, std::int64_t, A*); \
  template void scale<A>(Stream&, double, std::int64_t, A*); \
  template void add_scalars<A>(Stream&, std::span<const std::int64_t>, std::span<const double>, A*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
MC_INSTANTIATE(double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
