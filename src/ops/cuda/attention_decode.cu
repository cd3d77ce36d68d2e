// Attention of one new position per sequence against its cache, and zeros in rows behind the lengths.
#include "ops/cuda/attention.hpp"
#include "ops/cuda/attention_tiles.cuh"

namespace moecollab::ops::cuda {
namespace {

constexpr int kWarps = 8, kDecodeWidth = 128, kOwn = kDecodeWidth / 32, kKeysAtOnce = 4;

// out[b,h,:] = softmax(scale q k^T) v over the first lengths[b] positions of the cache; zero when there is
// none. Work: a block per (sequence, query head, 128 columns). Its warp w takes keys 4 (w + 8 i) + 0..3;
// lanes share the columns, so that a warp reads whole rows; each warp has its own online softmax and warp 0
// joins them. Launch: 256 threads. Precision: f32. Reproducible: keys of a warp in order, warps joined in
// order. Bytes: the valid rows of cache_k and cache_v, once for each query head that shares them (from the L2
// cache but for the first). Twin: src/ops/cpu/attention_plain.cpp.
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    decode_kernel(const T* q, const T* cache_k, const T* cache_v, const std::int32_t* lengths, std::int64_t S,
                  std::int64_t H, std::int64_t Hkv, std::int64_t Dh, float scale, T* out) {
  MC_SHARED(float, maxima, [kWarps]);
  MC_SHARED(float, totals, [kWarps]);
  MC_SHARED(float, partial, [kWarps][kDecodeWidth]);
  const std::int64_t parts = (Dh + kDecodeWidth - 1) / kDecodeWidth, block = blockIdx.x;
  const std::int64_t column0 = block % parts * kDecodeWidth, h = block / parts % H, b = block / parts / H;
  const std::int64_t length = lengths[b], row = Hkv * Dh, kv = b * S * row + h / (H / Hkv) * Dh;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const T* const query = q + (b * H + h) * Dh;
  float max = -HUGE_VALF, total = 0.0f, sums[kOwn] = {};
  for (std::int64_t key0 = warp * kKeysAtOnce; key0 < length; key0 += kWarps * kKeysAtOnce) {
    float score[kKeysAtOnce] = {};
    for (std::int64_t d = lane; d < Dh; d += 32) {
      const float left = load(&query[d]);
#pragma unroll
      for (int i = 0; i < kKeysAtOnce; ++i)
        if (key0 + i < length) score[i] += left * load(&cache_k[kv + (key0 + i) * row + d]);
    }
    float top = max;
#pragma unroll
    for (int i = 0; i < kKeysAtOnce; ++i) {
      for (int far = 16; far > 0; far /= 2) score[i] += __shfl_xor_sync(0xffffffffu, score[i], far);
      if (key0 + i < length) top = fmaxf(top, scale * score[i]);
    }
    const float factor = numerics::softmax_rescale(max, top);
    total *= factor;
    max = top;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) sums[j] *= factor;
#pragma unroll
    for (int i = 0; i < kKeysAtOnce; ++i) {
      if (key0 + i >= length) continue;
      const float p = numerics::exp_fast(scale * score[i] - top);
      total += p;
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const std::int64_t d = column0 + lane + 32 * j;
        if (d < Dh) sums[j] += p * load(&cache_v[kv + (key0 + i) * row + d]);
      }
    }
  }
  if (lane == 0) maxima[warp] = max, totals[warp] = total;
#pragma unroll
  for (int j = 0; j < kOwn; ++j) partial[warp][lane + 32 * j] = sums[j];
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  if (column >= kDecodeWidth || column0 + column >= Dh) return;
  float top = -HUGE_VALF;
  for (int w = 0; w < kWarps; ++w) top = fmaxf(top, maxima[w]);
  float sum = 0.0f, denominator = 0.0f;
  for (int w = 0; w < kWarps; ++w) {
    const float factor = numerics::softmax_rescale(maxima[w], top);
    sum += factor * partial[w][column];
    denominator += factor * totals[w];
  }
  store(&out[(b * H + h) * Dh + column0 + column], length > 0 ? sum / denominator : 0.0f);
}

// A block per 8 rows, a warp per row; blocks whose rows are all valid only read a length.
// Bytes: writes the rows behind the lengths.
__global__ void clear_rows_kernel(const std::int32_t* lengths, std::int64_t B, std::int64_t S,
                                  std::int64_t width, __nv_bfloat16* x) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (row >= B * S || row % S < lengths[row / S]) return;
  for (std::int64_t d = threadIdx.x % 32; d < width; d += 32) store(&x[row * width + d], 0.0f);
}
// A thread per element. Bytes: writes the elements behind the lengths.
__global__ void clear_lse_kernel(const std::int32_t* lengths, std::int64_t B, std::int64_t H, std::int64_t S,
                                 float* lse) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (at < B * H * S && at % S >= lengths[at / S / H]) lse[at] = 0.0f;
}

}  // namespace

template <class T>
void attention_decode(Stream& stream, const T* q, const T* cache_k, const T* cache_v,
                      const std::int32_t* lengths, const AttentionExtents& x, T* out) {
  const std::int64_t blocks = x.B * x.H * ((x.Dh + kDecodeWidth - 1) / kDecodeWidth);
  if (blocks == 0) return;
  using Element = Native<T>;
  MC_LAUNCH((decode_kernel<Element>),
            (gpu::Launch{static_cast<unsigned>(blocks), 32 * kWarps, cuda_stream(stream)}), native(q),
            native(cache_k), native(cache_v), lengths, x.S, x.H, x.Hkv, x.Dh, static_cast<float>(x.scale),
            native(out));
}
template void attention_decode<float>(Stream&, const float*, const float*, const float*, const std::int32_t*,
                                      const AttentionExtents&, float*);
template void attention_decode<BFloat16>(Stream&, const BFloat16*, const BFloat16*, const BFloat16*,
                                         const std::int32_t*, const AttentionExtents&, BFloat16*);

void clear_padding_rows(Stream& stream, const std::int32_t* lengths, std::int64_t B, std::int64_t S,
                        std::int64_t width, BFloat16* x) {
  if (B * S * width == 0) return;
  MC_LAUNCH(clear_rows_kernel,
            (gpu::Launch{static_cast<unsigned>((B * S + 7) / 8), 256, cuda_stream(stream)}), lengths, B, S,
            width, native(x));
}

void clear_padding_lse(Stream& stream, const std::int32_t* lengths, std::int64_t B, std::int64_t H,
                       std::int64_t S, float* lse) {
  if (B * H * S == 0) return;
  MC_LAUNCH(clear_lse_kernel,
            (gpu::Launch{static_cast<unsigned>((B * H * S + 255) / 256), 256, cuda_stream(stream)}), lengths,
            B, H, S, lse);
}

}  // namespace moecollab::ops::cuda
