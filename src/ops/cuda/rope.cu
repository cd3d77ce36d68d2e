// Twin: ops/cpu/rope.cpp.
#include "ops/cuda/rope.hpp"

#include "moecollab/numerics/rope.hpp"
#include "ops/cuda/elements.cuh"

namespace moecollab::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokens = 8;   // of a block
constexpr int kPairs = 128;  // of a head that a block rotates, at most

// For i < Dh/2: (x[i], x[i + Dh/2]) is rotated by the angle of (position, i) times `direction`, for all heads
// of kTokens tokens and a panel of kPairs values of i. The angles depend on neither the head nor anything
// that a thread would share with another block, but cost more than the rotation: their sines and cosines,
// computed in double, are made once per block and then used by all heads. Moves 2 T H Dh elements; sums
// nothing.
template <class T>
__global__ void rope_kernel(const std::int32_t* positions, std::int64_t num_tokens, int H, int Dh, int panels,
                            double theta, float direction, bool aligned, T* x) {
  MC_SHARED(double, frequencies, [kPairs]);
  MC_SHARED(float, cosines, [kTokens * kPairs]);
  MC_SHARED(float, sines, [kTokens * kPairs]);
  constexpr int kN = kPack<T>;
  const int half = Dh / 2, first_pair = static_cast<int>(blockIdx.x % static_cast<unsigned>(panels)) * kPairs;
  const int pairs = half - first_pair < kPairs ? half - first_pair : kPairs;
  const std::int64_t first_token =
      static_cast<std::int64_t>(blockIdx.x / static_cast<unsigned>(panels)) * kTokens;
  const int tokens =
      num_tokens - first_token < kTokens ? static_cast<int>(num_tokens - first_token) : kTokens;
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kThreads)
    frequencies[i] = numerics::rope_frequency(theta, first_pair + i, Dh);
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < tokens * pairs; at += kThreads) {
    const int token = at / pairs, i = at % pairs;
    const double angle = positions[first_token + token] * frequencies[i];
    cosines[token * kPairs + i] = static_cast<float>(cos(angle));
    sines[token * kPairs + i] = direction * static_cast<float>(sin(angle));
  }
  __syncthreads();
  const int packs = (pairs + kN - 1) / kN, packs_of_token = H * packs;
  for (int at = static_cast<int>(threadIdx.x); at < tokens * packs_of_token; at += kThreads) {
    const int token = at / packs_of_token, head = at % packs_of_token / packs, i = at % packs * kN;
    T* const first = x + ((first_token + token) * H + head) * Dh + first_pair + i;
    const float *const cosine = cosines + token * kPairs + i, *const sine = sines + token * kPairs + i;
    float a[kN], b[kN];
    load_some<kN>(first, pairs - i, aligned, a);
    load_some<kN>(first + half, pairs - i, aligned, b);
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      if (i + k >= pairs) continue;
      const numerics::Pair<float> turned = numerics::rotate(a[k], b[k], cosine[k], sine[k]);
      a[k] = turned.first;
      b[k] = turned.second;
    }
    store_some<kN>(first, pairs - i, aligned, a);
    store_some<kN>(first + half, pairs - i, aligned, b);
  }
}

}  // namespace

template <class A>
void rope(Stream& stream, const std::int32_t* positions, std::int64_t T, std::int64_t H, std::int64_t Dh,
          double theta, int direction, A* x) {
  using N = Native<A>;
  if (T * H * Dh == 0) return;
  const std::int64_t panels = (Dh / 2 + kPairs - 1) / kPairs;
  MC_LAUNCH(rope_kernel<N>,
            (gpu::Launch{dim3(static_cast<unsigned>(panels) * blocks_for(T, kTokens)), dim3(kThreads),
                         cuda_stream(stream)}),
            positions, T, static_cast<int>(H), static_cast<int>(Dh), static_cast<int>(panels), theta,
            static_cast<float>(direction), rows_aligned<N>(Dh / 2, {x}), native(x));
}

#define MC_INSTANTIATE(A)                                                                                    \
  template void rope<A>(Stream&, const std::int32_t*, std::int64_t, std::int64_t, std::int64_t, double, int, \
                        A*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
