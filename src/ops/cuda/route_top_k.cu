#include "ops/cuda/route_top_k.hpp"

#include <limits>

#include "moecollab/numerics/activation.hpp"
#include "moecollab/numerics/routing.hpp"
#include "ops/cuda/warp.cuh"

namespace moecollab::ops::cuda {

namespace {

constexpr int kWarps = 8;  // tokens of a block

__device__ std::int64_t token_of_warp() {
  return static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
}

// The sum over the picks in their order: that of the host, whatever E is.
__device__ float sum_over_picks(float of_lane, int num_picks) {
  float sum = 0.0f;
  for (int k = 0; k < num_picks; ++k) sum += __shfl_sync(kAllLanes, of_lane, k);
  return sum;
}

// What a kernel knows of the options.
struct Gate {
  std::int64_t tokens;
  int experts, picks;
  bool sigmoid, softmax_over_picks, score_is_logit, renormalise;
  float scaling;
};

// For lane k < K the share of pick k in the softmax over the picked logits; 0 for lanes without a pick.
__device__ float softmax_over_picks(float z, bool picked, int num_picks) {
  const float max = warp_max(picked ? z : -std::numeric_limits<float>::infinity());
  const float value = picked ? numerics::exp_fast(z - max) : 0.0f;
  const float sum = sum_over_picks(value, num_picks);
  return picked ? value / sum : 0.0f;
}

// Integers in the order of the keys; both zeros are one. 0 is below them all: taken, or no expert.
__device__ unsigned ordered(float key) {
  const unsigned bits = __float_as_uint(numerics::selection_key(key) + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// A warp per token; expert e = 32 * r + lane lives in register r of its lane, E <= 32 * kRegisters. Scores by
// one pass of exponentials, sums by a tree over the lanes; then K times the highest key and, of those that
// have it, the lowest id; lane k keeps pick k, and its weight comes from the picked logits alone, summed in
// their order. f32; every token is the work of one warp in one order. Bytes moved: T * (8 * E + 8 * K + 4),
// and E biases from the cache.
template <int kRegisters>
__global__ void __launch_bounds__(kWarps * 32, 2)
    route_kernel(const float* __restrict__ logits, const float* __restrict__ selection_bias,
                 const std::uint8_t* __restrict__ valid, Gate gate, std::int32_t* __restrict__ picks,
                 float* __restrict__ weights, float* __restrict__ probs, float* __restrict__ lse) {
  const std::int64_t t = token_of_warp();
  if (t >= gate.tokens) return;
  const int lane = lane_id();
  const float* row = logits + t * gate.experts;
  float* p_row = probs + t * gate.experts;
  if (valid != nullptr && valid[t] == 0) {
    for (int e = lane; e < gate.experts; e += 32) p_row[e] = 0.0f;
    if (lane < gate.picks) {
      picks[t * gate.picks + lane] = -1;
      weights[t * gate.picks + lane] = 0.0f;
    }
    if (lane == 0) lse[t] = 0.0f;
    return;
  }

  float z[kRegisters], max = -std::numeric_limits<float>::infinity();
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const int e = r * 32 + lane;
    z[r] = e < gate.experts ? row[e] : -std::numeric_limits<float>::infinity();
    max = z[r] > max ? z[r] : max;
  }
  max = warp_max(max);
  float p[kRegisters], sum = 0.0f, sigmoid_sum = 0.0f;
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const bool there = r * 32 + lane < gate.experts;
    p[r] = there ? numerics::exp_fast(z[r] - max) : 0.0f;
    sum += p[r];
  }
  sum = lanes_sum<32>(sum);
  if (lane == 0) lse[t] = max + std::log(sum);
  const float of_softmax = 1.0f / sum;
  float of_probs = 1.0f;  // what is left between the scores and the probs
  if (gate.sigmoid) {
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      p[r] = r * 32 + lane < gate.experts ? numerics::sigmoid(z[r]) : 0.0f;
      sigmoid_sum += p[r];
    }
    of_probs = 1.0f / numerics::at_least_tiny(lanes_sum<32>(sigmoid_sum));
  }

  // Without a bias, or with one of zeros, all scores rise with the logit, which orders without their rounding
  // and saturation.
  bool biased = false;
  if (selection_bias != nullptr)
    for (int e = lane; e < gate.experts; e += 32) biased = biased || __ldg(selection_bias + e) != 0.0f;
  biased = __any_sync(kAllLanes, biased) != 0;
  unsigned key[kRegisters];
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const int e = r * 32 + lane;
    if (!gate.sigmoid) p[r] *= of_softmax;
    if (e < gate.experts) {
      p_row[e] = p[r] * of_probs;
      key[r] = ordered(!biased ? z[r] : (gate.score_is_logit ? z[r] : p[r]) + __ldg(selection_bias + e));
    } else {
      key[r] = 0;
    }
  }
  int pick = -1;
  for (int k = 0; k < gate.picks; ++k) {
    unsigned best = 0;
    int id = gate.experts;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r)
      if (key[r] > best) {
        best = key[r];
        id = r * 32 + lane;
      }
    const unsigned highest = __reduce_max_sync(kAllLanes, best);
    id = __reduce_min_sync(kAllLanes, best == highest ? id : gate.experts);
#pragma unroll
    for (int r = 0; r < kRegisters; ++r)
      if (r * 32 + lane == id) key[r] = 0;
    if (lane == k) pick = id;
  }

  const bool picked = lane < gate.picks;
  const float z_pick = picked ? row[pick] : 0.0f;
  float weight;
  if (gate.softmax_over_picks) {
    weight = softmax_over_picks(z_pick, picked, gate.picks) * gate.scaling;
  } else {
    float score = 0.0f;
    if (picked)
      score = gate.sigmoid ? numerics::sigmoid(z_pick) : numerics::exp_fast(z_pick - max) * of_softmax;
    const float picked_sum = sum_over_picks(score, gate.picks);
    weight = score * (gate.renormalise ? gate.scaling / numerics::at_least_tiny(picked_sum) : gate.scaling);
  }
  if (!picked) return;
  picks[t * gate.picks + lane] = pick;
  weights[t * gate.picks + lane] = weight;
}

// The coefficients of the auxiliary losses as the gradient needs them.
struct Auxiliary {
  bool any;
  double balance, batch_entropy, tokens;
  float token_entropy, z_loss;  // dL/dH_t; dL/dlse_t = z_loss * lse_t
};

// d_probs[e]: dL/dp_te without the entropy of the token, from sums over all ranks. A thread per expert, f64.
__global__ void batch_gradient_kernel(const double* __restrict__ sums, Auxiliary aux, int experts, int picks,
                                      float* __restrict__ d_probs) {
  const int e = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (e >= experts) return;
  d_probs[e] = static_cast<float>(
      numerics::d_prob_of_batch(aux.balance, sums[e] / (static_cast<double>(picks) * aux.tokens), aux.tokens,
                                aux.batch_entropy, sums[experts + e] / aux.tokens));
}

// A warp per token, experts in registers as in the forward pass. With G = dL/dp: dz_j = p_j (G_j - sum_i p_i
// G_i), times (1 - s_j) for sigmoid scores; the z-loss; and what comes through the picked logits alone,
// shares g_k of the weights: dz_k = g_k (u_k - sum_i g_i u_i), lane k for pick k, handed to the lane that has
// the expert. Sums over E by a tree over the lanes, over K in order. Bytes moved: T * (8 * E + 8 * K + 4), 4
// * E * T more for sigmoid scores.
template <int kRegisters>
__global__ void __launch_bounds__(kWarps * 32, 2)
    route_backward_kernel(const float* __restrict__ d_weights, const float* __restrict__ logits,
                          const std::int32_t* __restrict__ picks, const float* __restrict__ probs,
                          const float* __restrict__ lse, const std::uint8_t* __restrict__ valid,
                          const float* __restrict__ d_probs, Gate gate, Auxiliary aux,
                          float* __restrict__ d_logits) {
  const std::int64_t t = token_of_warp();
  if (t >= gate.tokens) return;
  const int lane = lane_id();
  const float* z = logits + t * gate.experts;
  float* dz = d_logits + t * gate.experts;
  if (valid != nullptr && valid[t] == 0) {
    for (int e = lane; e < gate.experts; e += 32) dz[e] = 0.0f;
    return;
  }
  const int pick = lane < gate.picks ? picks[t * gate.picks + lane] : -1;
  const float u = pick >= 0 ? d_weights[t * gate.picks + lane] : 0.0f;
  const bool picks_through_probs = !gate.sigmoid && !gate.softmax_over_picks;

  float p[kRegisters], g[kRegisters];
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const int e = r * 32 + lane;
    p[r] = e < gate.experts ? probs[t * gate.experts + e] : 0.0f;
    g[r] = e < gate.experts ? __ldg(d_probs + e) : 0.0f;
    if (aux.token_entropy != 0.0f && e < gate.experts) g[r] -= aux.token_entropy * numerics::log_prob(p[r]);
  }
  const auto add_to_picks = [&](float of_lane) {
    for (int k = 0; k < gate.picks; ++k) {
      const int id = __shfl_sync(kAllLanes, pick, k);
      const float value = __shfl_sync(kAllLanes, of_lane, k);
#pragma unroll
      for (int r = 0; r < kRegisters; ++r)
        if (r * 32 + lane == id) g[r] += value;
    }
  };
  if (picks_through_probs) add_to_picks(gate.scaling * u);
  if (aux.any || picks_through_probs) {
    float mean = 0.0f;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) mean += p[r] * g[r];
    mean = lanes_sum<32>(mean);
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      const int e = r * 32 + lane;
      g[r] = p[r] * (g[r] - mean);
      if (gate.sigmoid && e < gate.experts) g[r] *= 1.0f - numerics::sigmoid(z[e]);
    }
  }
  if (aux.z_loss != 0.0f) {
    const float of_lse = lse[t], factor = aux.z_loss * of_lse;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      const int e = r * 32 + lane;
      if (e < gate.experts) g[r] += factor * (gate.sigmoid ? numerics::exp_fast(z[e] - of_lse) : p[r]);
    }
  }
  if (!picks_through_probs) {
    const float z_pick = pick >= 0 ? z[pick] : 0.0f;
    float share, slope = 1.0f;
    if (!gate.sigmoid) {
      share = softmax_over_picks(z_pick, pick >= 0, gate.picks);
    } else {
      const float score = numerics::sigmoid(z_pick);
      share = pick >= 0 ? score : 0.0f;
      slope = 1.0f - score;
      if (gate.renormalise) share /= numerics::at_least_tiny(sum_over_picks(share, gate.picks));
    }
    const float mean = gate.renormalise || !gate.sigmoid ? sum_over_picks(share * u, gate.picks) : 0.0f;
    add_to_picks(gate.scaling * slope * share * (u - mean));
  }
#pragma unroll
  for (int r = 0; r < kRegisters; ++r)
    if (r * 32 + lane < gate.experts) dz[r * 32 + lane] = g[r];
}

Gate gate_of(const cpu::RoutingExtents& extents, const RouterOptions& options) {
  const bool after = options.scoring == Scoring::softmax_after_top_k;
  return {extents.tokens,
          static_cast<int>(extents.experts),
          static_cast<int>(extents.picks),
          options.scoring == Scoring::sigmoid,
          after || (options.scoring == Scoring::softmax_before_top_k && options.renormalise),
          after,
          options.renormalise,
          static_cast<float>(options.scaling)};
}

gpu::Launch warp_per_token(std::int64_t tokens, Stream& stream) {
  return {dim3(static_cast<unsigned>((tokens + kWarps - 1) / kWarps)), dim3(kWarps * 32),
          cuda_stream(stream)};
}

// f(registers of a lane for the experts)
template <class F>
void with_registers(std::int64_t experts, F&& f) {
  if (experts <= 32) return f.template operator()<1>();
  if (experts <= 64) return f.template operator()<2>();
  if (experts <= 128) return f.template operator()<4>();
  if (experts <= 256) return f.template operator()<8>();
  if (experts <= 512) return f.template operator()<16>();
  f.template operator()<32>();
}

}  // namespace

void route_top_k_forward(Stream& stream, const float* logits, const float* selection_bias,
                         const std::uint8_t* valid, const cpu::RoutingExtents& extents,
                         const RouterOptions& options, std::int32_t* picks, float* weights, float* probs,
                         float* lse) {
  if (extents.tokens == 0) return;
  const Gate gate = gate_of(extents, options);
  with_registers(extents.experts, [&]<int kRegisters>() {
    MC_LAUNCH(route_kernel<kRegisters>, warp_per_token(extents.tokens, stream), logits, selection_bias, valid,
              gate, picks, weights, probs, lse);
  });
}

void route_top_k_backward(Stream& stream, const float* d_weights, const float* logits,
                          const std::int32_t* picks, const float* probs, const float* lse,
                          const std::uint8_t* valid, const double* sums, const cpu::RoutingExtents& extents,
                          std::int64_t num_tokens, double balance_scale, const RouterOptions& options,
                          const BalanceOptions& balance, float* d_logits) {
  if (extents.tokens == 0) return;
  const auto tokens = static_cast<double>(num_tokens);
  const double entropy = balance_scale * numerics::entropy_scale(extents.experts) / tokens;
  const Auxiliary aux{balance_scale != 0.0 && (balance.balance != 0.0 || balance.z_loss != 0.0 ||
                                               balance.token_entropy != 0.0 || balance.batch_entropy != 0.0),
                      balance_scale * balance.balance * static_cast<double>(extents.experts),
                      balance.batch_entropy * entropy,
                      tokens,
                      static_cast<float>(balance.token_entropy * entropy),
                      static_cast<float>(2.0 * balance.z_loss * balance_scale / tokens)};
  const Gate gate = gate_of(extents, options);
  auto* d_probs =
      static_cast<float*>(stream.scratch(extents.experts * static_cast<std::int64_t>(sizeof(float))));
  MC_LAUNCH(
      batch_gradient_kernel,
      (gpu::Launch{dim3(static_cast<unsigned>((extents.experts + 31) / 32)), dim3(32), cuda_stream(stream)}),
      sums, aux, gate.experts, gate.picks, d_probs);
  with_registers(extents.experts, [&]<int kRegisters>() {
    MC_LAUNCH(route_backward_kernel<kRegisters>, warp_per_token(extents.tokens, stream), d_weights, logits,
              picks, probs, lse, valid, d_probs, gate, aux, d_logits);
  });
}

}  // namespace moecollab::ops::cuda
