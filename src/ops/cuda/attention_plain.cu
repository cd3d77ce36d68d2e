// Attention in tiles of 64 queries and 64 keys, in f32: every shape and both types, without tensor cores.
// What cuDNN computes for bf16 is in attention_graph.cpp; the twin on the CPU is src/ops/cpu/attention.cpp.
#include "ops/cuda/attention.hpp"
#include "ops/cuda/attention_tiles.cuh"

namespace moecollab::ops::cuda::plain {
namespace {

struct Heads {
  std::int64_t B, S, H, Hkv, Dh;
  bool causal;
  float scale;

  __device__ std::int64_t at_q(std::int64_t b, std::int64_t s, std::int64_t h) const {
    return ((b * S + s) * H + h) * Dh;
  }
  __device__ std::int64_t at_kv(std::int64_t b, std::int64_t s, std::int64_t h) const {
    return ((b * S + s) * Hkv + h) * Dh;
  }
  template <class T>
  __device__ HeadRows<T> rows_q(const T* q, std::int64_t b, int s, std::int64_t h, int length) const {
    return {q + at_q(b, s, h), H * Dh, length - s};
  }
  template <class T>
  __device__ HeadRows<T> rows_kv(const T* k, std::int64_t b, int s, std::int64_t h, int length) const {
    return {k + at_kv(b, s, h), Hkv * Dh, length - s};
  }
  __device__ bool visible(int query, int key, int length) const {
    return query < length && key < length && (!causal || key <= query);
  }
};

// What a block works on: one tile of a head, `width` columns of its result. Tiles are counted so that the
// longest ones of causal attention start first.
struct Unit {
  std::int64_t b, h;
  int row0;  // first row of the tile
  int column0;
};
__device__ Unit unit_of(std::int64_t block, std::int64_t num_heads, std::int64_t B, std::int64_t S,
                        int columns, int width, bool last_first) {
  const std::int64_t parts = (columns + width - 1) / width, tiles = (S + kTile - 1) / kTile;
  const std::int64_t part = block % parts, h = block / parts % num_heads, b = block / (parts * num_heads) % B;
  const auto tile = static_cast<int>(block / (parts * num_heads * B));
  return {b, h, (last_first ? static_cast<int>(tiles) - 1 - tile : tile) * kTile,
          static_cast<int>(part) * width};
}
unsigned num_units(std::int64_t num_heads, std::int64_t B, std::int64_t S, std::int64_t columns, int width) {
  return static_cast<unsigned>((columns + width - 1) / width * ((S + kTile - 1) / kTile) * num_heads * B);
}

// out = softmax(scale q k^T) v and lse, online over tiles of keys in their order.
// Work: a block per (sequence, query head, 64 queries, kWidth columns of out); heads wider than kWidth
// compute their scores once for each such part. Launch: 256 threads, 33.5 KiB of shared memory. Precision:
// f32 products, sums and softmax. Reproducible: a row belongs to one half warp, tiles and columns come in a
// fixed order. Bytes: reads q once and, per 64 queries, the keys and values that they see; writes out and
// lse. Rows at or beyond the length are not read, and become zero. Twin: src/ops/cpu/attention.cpp.
template <int kWidth, class T>
__global__ void __launch_bounds__(kTileThreads, 2)
    forward_kernel(const T* q, const T* k, const T* v, const std::int32_t* lengths, Heads x, T* out,
                   float* lse) {
  MC_SHARED(TileMemory, memory);
  const int Dh = static_cast<int>(x.Dh);
  const Unit u = unit_of(blockIdx.x, x.H, x.B, x.S, Dh, kWidth, true);
  const int length = lengths[u.b];
  const std::int64_t hkv = u.h / (x.H / x.Hkv);
  const int t = static_cast<int>(threadIdx.x), ty = t / 16, tx = t % 16;
  float max[kOwnRows], sum[kOwnRows], sums[kOwnRows][kWidth / 16] = {};
  for (int i = 0; i < kOwnRows; ++i) max[i] = -HUGE_VALF, sum[i] = 0.0f;
  const int behind = u.row0 + kTile, keys = x.causal && behind < length ? behind : length;
  for (int key0 = 0; u.row0 < length && key0 < keys; key0 += kTile) {
    float scores[kOwnRows][kOwnColumns];
    score_tile(memory, x.rows_q(q, u.b, u.row0, u.h, length), x.rows_kv(k, u.b, key0, hkv, length), Dh,
               scores);
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      const int query = u.row0 + ty * kOwnRows + i;
      float top = max[i];
#pragma unroll
      for (int j = 0; j < kOwnColumns; ++j) {
        const bool seen = x.visible(query, key0 + tx + 16 * j, length);
        scores[i][j] = seen ? x.scale * scores[i][j] : -HUGE_VALF;
        top = fmaxf(top, scores[i][j]);
      }
      top = row_max(top);
      float part = 0.0f;
#pragma unroll
      for (int j = 0; j < kOwnColumns; ++j) {
        const float p = scores[i][j] == -HUGE_VALF ? 0.0f : numerics::exp_fast(scores[i][j] - top);
        memory.weights[ty * kOwnRows + i][tx + 16 * j] = p;
        part += p;
      }
      const float factor = numerics::softmax_rescale(max[i], top);
      sum[i] = sum[i] * factor + row_sum(part);
      max[i] = top;
#pragma unroll
      for (int j = 0; j < kWidth / 16; ++j) sums[i][j] *= factor;
    }
    add_weighted<kWidth>(memory, x.rows_kv(v, u.b, key0, hkv, length), u.column0, Dh, sums);
  }
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    const int query = u.row0 + ty * kOwnRows + i;
    if (query >= x.S) continue;
    const float inverse = query < length ? 1.0f / sum[i] : 0.0f;
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j) {
      const int d = u.column0 + tx + 16 * j;
      if (d < Dh) store(&out[x.at_q(u.b, query, u.h) + d], sums[i][j] * inverse);
    }
    if (tx == 0 && u.column0 == 0)
      lse[(u.b * x.H + u.h) * x.S + query] = query < length ? numerics::log_sum_exp(max[i], sum[i]) : 0.0f;
  }
}

// dots[b,h,s] = sum over Dh of d_out * out: the mean of dP under the softmax weights. A warp per row, eight
// rows a block of 256 threads; f32, lanes in a fixed order. Bytes: reads 2 B S H Dh elements, writes B S H
// floats. Rows at or beyond the length are left out; nobody reads them.
template <class T>
__global__ void row_dots_kernel(const T* d_out, const T* out, const std::int32_t* lengths, Heads x,
                                float* dots) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;  // in [B,S,H]
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (row >= x.B * x.S * x.H) return;  // whole warps leave
  const std::int64_t h = row % x.H, s = row / x.H % x.S, b = row / x.H / x.S;
  if (s >= lengths[b]) return;
  float sum = 0.0f;
  for (std::int64_t d = lane; d < x.Dh; d += 32)
    sum += load(&d_out[row * x.Dh + d]) * load(&out[row * x.Dh + d]);
  for (int far = 16; far > 0; far /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, far);
  if (lane == 0) dots[(b * x.H + h) * x.S + s] = sum;
}

// P and dS / scale of the thread's own elements, from the scores and dP.
struct Gradient {
  const float *lse, *dots;  // of the head
  float scale;
  __device__ float weight(float score, int query) const {
    return numerics::exp_fast(scale * score - lse[query]);
  }
  __device__ float score(float weight, float d_weight, int query) const {
    return weight * (d_weight - dots[query]);
  }
};

// dK = scale dS^T Q and dV = P^T dO with P = exp(scale S - lse), dS = P * (dO V^T - dots).
// Work: a block per (sequence, key/value head, 64 keys, kWidth columns); it goes over the query heads of its
// group and over their tiles of queries, the causal ones from the diagonal on. Launch: 256 threads, 33.5 KiB
// shared. Precision: f32. Reproducible: a row of dK and dV is summed by one half warp over (head, query) in
// order, no atomics. Bytes: reads k and v once and, per 64 keys, q and d_out of the queries that see them;
// writes dk and dv. Rows at or beyond the length are not read, and become zero. Twin:
// src/ops/cpu/attention.cpp.
template <int kWidth, class T>
__global__ void __launch_bounds__(kTileThreads, 1)
    key_value_kernel(const T* d_out, const T* q, const T* k, const T* v, const std::int32_t* lengths,
                     const float* lse, const float* dots, Heads x, T* dk, T* dv) {
  MC_SHARED(TileMemory, memory);
  const int Dh = static_cast<int>(x.Dh);
  const Unit u = unit_of(blockIdx.x, x.Hkv, x.B, x.S, Dh, kWidth, false);
  const int length = lengths[u.b];
  const std::int64_t group = x.H / x.Hkv;
  const int t = static_cast<int>(threadIdx.x), ty = t / 16, tx = t % 16;
  const HeadRows<T> keys = x.rows_kv(k, u.b, u.row0, u.h, length),
                    values = x.rows_kv(v, u.b, u.row0, u.h, length);
  float dk_sums[kOwnRows][kWidth / 16] = {}, dv_sums[kOwnRows][kWidth / 16] = {};
  for (std::int64_t h = u.h * group; u.row0 < length && h < (u.h + 1) * group; ++h)
    for (int q0 = x.causal ? u.row0 : 0; q0 < length; q0 += kTile) {
      const HeadRows<T> queries = x.rows_q(q, u.b, q0, h, length),
                        grads = x.rows_q(d_out, u.b, q0, h, length);
      const std::int64_t stats = (u.b * x.H + h) * x.S;
      const Gradient gradient{lse + stats, dots + stats, x.scale};
      // Rows of both products are the keys: the thread holds elements (key, query).
      float weights[kOwnRows][kOwnColumns], d_weights[kOwnRows][kOwnColumns];
      score_tile(memory, keys, queries, Dh, weights);
      score_tile(memory, values, grads, Dh, d_weights);
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
        for (int j = 0; j < kOwnColumns; ++j) {
          const int key = u.row0 + ty * kOwnRows + i, query = q0 + tx + 16 * j;
          float p = 0.0f, ds = 0.0f;
          if (x.visible(query, key, length)) {
            p = gradient.weight(weights[i][j], query);
            ds = gradient.score(p, d_weights[i][j], query);
          }
          memory.weights[ty * kOwnRows + i][tx + 16 * j] = p;
          d_weights[i][j] = ds;
        }
      add_weighted<kWidth>(memory, grads, u.column0, Dh, dv_sums);
      __syncthreads();  // the weights have been read
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
        for (int j = 0; j < kOwnColumns; ++j)
          memory.weights[ty * kOwnRows + i][tx + 16 * j] = d_weights[i][j];
      add_weighted<kWidth>(memory, queries, u.column0, Dh, dk_sums);
    }
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    const int key = u.row0 + ty * kOwnRows + i;
    if (key >= x.S) continue;
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j) {
      const int d = u.column0 + tx + 16 * j;
      if (d >= Dh) continue;
      store(&dk[x.at_kv(u.b, key, u.h) + d], x.scale * dk_sums[i][j]);
      store(&dv[x.at_kv(u.b, key, u.h) + d], dv_sums[i][j]);
    }
  }
}

// dQ = scale dS K, dS as above. Work: a block per (sequence, query head, 64 queries, kWidth columns), over
// tiles of keys in order. Launch, precision, reproducibility as above. Bytes: reads q and d_out once and, per
// 64 queries, the keys and values that they see; writes dq.
template <int kWidth, class T>
__global__ void __launch_bounds__(kTileThreads, kWidth < 128 ? 2 : 1)
    query_kernel(const T* d_out, const T* q, const T* k, const T* v, const std::int32_t* lengths,
                 const float* lse, const float* dots, Heads x, T* dq) {
  MC_SHARED(TileMemory, memory);
  const int Dh = static_cast<int>(x.Dh);
  const Unit u = unit_of(blockIdx.x, x.H, x.B, x.S, Dh, kWidth, true);
  const int length = lengths[u.b];
  const std::int64_t hkv = u.h / (x.H / x.Hkv);
  const int t = static_cast<int>(threadIdx.x), ty = t / 16, tx = t % 16;
  const std::int64_t stats = (u.b * x.H + u.h) * x.S;
  const Gradient gradient{lse + stats, dots + stats, x.scale};
  float sums[kOwnRows][kWidth / 16] = {};
  const int behind = u.row0 + kTile, num_keys = x.causal && behind < length ? behind : length;
  for (int key0 = 0; u.row0 < length && key0 < num_keys; key0 += kTile) {
    const HeadRows<T> keys = x.rows_kv(k, u.b, key0, hkv, length);
    float weights[kOwnRows][kOwnColumns], d_weights[kOwnRows][kOwnColumns];
    score_tile(memory, x.rows_q(q, u.b, u.row0, u.h, length), keys, Dh, weights);
    score_tile(memory, x.rows_q(d_out, u.b, u.row0, u.h, length), x.rows_kv(v, u.b, key0, hkv, length), Dh,
               d_weights);
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
      for (int j = 0; j < kOwnColumns; ++j) {
        const int query = u.row0 + ty * kOwnRows + i, key = key0 + tx + 16 * j;
        float ds = 0.0f;
        if (x.visible(query, key, length))
          ds = gradient.score(gradient.weight(weights[i][j], query), d_weights[i][j], query);
        memory.weights[ty * kOwnRows + i][tx + 16 * j] = ds;
      }
    add_weighted<kWidth>(memory, keys, u.column0, Dh, sums);
  }
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    const int query = u.row0 + ty * kOwnRows + i;
    if (query >= x.S) continue;
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j) {
      const int d = u.column0 + tx + 16 * j;
      if (d < Dh) store(&dq[x.at_q(u.b, query, u.h) + d], x.scale * sums[i][j]);
    }
  }
}

Heads heads_of(const AttentionExtents& x) {
  return {x.B, x.S, x.H, x.Hkv, x.Dh, x.causal, static_cast<float>(x.scale)};
}
bool empty(const AttentionExtents& x) { return x.B * x.S * x.H * x.Dh == 0; }

}  // namespace

template <class T>
void attention_forward(Stream& stream, const T* q, const T* k, const T* v, const std::int32_t* lengths,
                       const AttentionExtents& x, T* out, float* lse) {
  if (empty(x)) return;
  with_width(x.Dh, [&]<int kWidth>() {
    const gpu::Launch how{num_units(x.H, x.B, x.S, x.Dh, kWidth), kTileThreads, cuda_stream(stream)};
    using Element = Native<T>;
    MC_LAUNCH((forward_kernel<kWidth, Element>), how, native(q), native(k), native(v), lengths, heads_of(x),
              native(out), lse);
  });
}

template <class T>
void attention_backward(Stream& stream, const T* d_out, const T* q, const T* k, const T* v,
                        const std::int32_t* lengths, const T* out, const float* lse,
                        const AttentionExtents& x, T* dq, T* dk, T* dv) {
  if (empty(x)) return;
  using Element = Native<T>;
  const std::int64_t rows = x.B * x.S * x.H;
  auto* const dots = static_cast<float*>(stream.scratch(rows * 4));
  MC_LAUNCH((row_dots_kernel<Element>),
            (gpu::Launch{static_cast<unsigned>((rows + 7) / 8), 256, cuda_stream(stream)}), native(d_out),
            native(out), lengths, heads_of(x), dots);
  with_width(x.Dh, [&]<int kWidth>() {
    const gpu::Launch keys{num_units(x.Hkv, x.B, x.S, x.Dh, kWidth), kTileThreads, cuda_stream(stream)};
    MC_LAUNCH((key_value_kernel<kWidth, Element>), keys, native(d_out), native(q), native(k), native(v),
              lengths, lse, static_cast<const float*>(dots), heads_of(x), native(dk), native(dv));
    const gpu::Launch queries{num_units(x.H, x.B, x.S, x.Dh, kWidth), kTileThreads, cuda_stream(stream)};
    MC_LAUNCH((query_kernel<kWidth, Element>), queries, native(d_out), native(q), native(k), native(v),
              lengths, lse, static_cast<const float*>(dots), heads_of(x), native(dq));
  });
}

template void attention_forward<float>(Stream&, const float*, const float*, const float*, const std::int32_t*,
                                       const AttentionExtents&, float*, float*);
template void attention_forward<BFloat16>(Stream&, const BFloat16*, const BFloat16*, const BFloat16*,
                                          const std::int32_t*, const AttentionExtents&, BFloat16*, float*);
template void attention_backward<float>(Stream&, const float*, const float*, const float*, const float*,
                                        const std::int32_t*, const float*, const float*,
                                        const AttentionExtents&, float*, float*, float*);
template void attention_backward<BFloat16>(Stream&, const BFloat16*, const BFloat16*, const BFloat16*,
                                           const BFloat16*, const std::int32_t*, const BFloat16*,
                                           const float*, const AttentionExtents&, BFloat16*, BFloat16*,
                                           BFloat16*);

}  // namespace moecollab::ops::cuda::plain
