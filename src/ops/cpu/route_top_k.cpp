// The gate on the host. Threads split the tokens; within a token everything is sequential or a reduction in a
// fixed tree, so the bits do not depend on the number of threads. Cost per token: one pass of exponentials
// over E, two per pick.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "moecollab/numerics/activation.hpp"
#include "moecollab/numerics/routing.hpp"
#include "ops/cpu/moe_kernels.hpp"

namespace moecollab::ops::cpu {

namespace {

constexpr std::int64_t kTokenBlock = 256;         // tokens summed by one unit of work
constexpr std::int64_t kParallelElements = 8192;  // below this a parallel region costs more than the work

// Softmax over the picked logits: the combine weights of softmax_after_top_k, and equally of
// softmax_before_top_k with renormalisation, where the denominators over all E cancel. Taken from the logits,
// it cannot divide by a sum that has underflowed.
bool weights_are_softmax_over_picks(const RouterOptions& options) {
  return options.scoring == Scoring::softmax_after_top_k ||
         (options.scoring == Scoring::softmax_before_top_k && options.renormalise);
}

template <class T>
void softmax_over_picks(const T* z, const std::int32_t* picks, std::int64_t num_picks, T* g) {
  T max = -std::numeric_limits<T>::infinity();
  for (std::int64_t k = 0; k < num_picks; ++k)
    if (picks[k] >= 0) max = std::max(max, z[picks[k]]);
  T sum = 0;
  for (std::int64_t k = 0; k < num_picks; ++k)
    sum += g[k] = picks[k] >= 0 ? numerics::exp_fast(z[picks[k]] - max) : T(0);
  for (std::int64_t k = 0; k < num_picks; ++k)
    if (picks[k] >= 0) g[k] /= sum;
}

// p = softmax(z); returns ln sum exp z.
template <class T>
T softmax_row(const T* z, std::int64_t size, T* p) {
  T max = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : max)
  for (std::int64_t e = 0; e < size; ++e) max = z[e] > max ? z[e] : max;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t e = 0; e < size; ++e) {
    const T value = numerics::exp_fast(z[e] - max);
    p[e] = value;
    sum += value;
  }
  const T inverse = T(1) / sum;
#pragma omp simd
  for (std::int64_t e = 0; e < size; ++e) p[e] *= inverse;
  return max + std::log(sum);
}

// K times the highest key and the lowest id that has it: two passes that vectorise, where one pass that keeps
// the best K mispredicts its branches (measured for K = 8 of 64 and of 256: half the time). A NaN marks keys
// that are taken.
template <class T>
void select_top_k(std::int64_t experts, std::int64_t num_picks, T* keys, std::int32_t* picks) {
  const auto size = static_cast<std::int32_t>(experts);
#pragma omp simd
  for (std::int32_t e = 0; e < size; ++e) keys[e] = numerics::selection_key(keys[e]);
  for (std::int64_t k = 0; k < num_picks; ++k) {
    T best = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : best)
    for (std::int32_t e = 0; e < size; ++e) best = keys[e] > best ? keys[e] : best;
    std::int32_t id = size;
#pragma omp simd reduction(min : id)
    for (std::int32_t e = 0; e < size; ++e) {
      const std::int32_t candidate = keys[e] == best ? e : size;
      id = candidate < id ? candidate : id;
    }
    picks[k] = id;
    keys[id] = std::numeric_limits<T>::quiet_NaN();
  }
}

template <class T>
void route_token(const T* z, const T* bias, const RoutingExtents& extents, const RouterOptions& options,
                 std::int32_t* picks, T* weights, T* probs, T* lse, T* keys) {
  const std::int64_t experts = extents.experts, num_picks = extents.picks;
  *lse = softmax_row(z, experts, probs);
  T sigmoid_sum = 0;
  if (options.scoring == Scoring::sigmoid) {
#pragma omp simd reduction(+ : sigmoid_sum)
    for (std::int64_t e = 0; e < experts; ++e) {
      probs[e] = numerics::sigmoid(z[e]);
      sigmoid_sum += probs[e];
    }
  }

  // Without a bias all scores rise with the logit, which orders without their rounding and saturation.
  const T* score = bias == nullptr || options.scoring == Scoring::softmax_after_top_k ? z : probs;
  if (bias == nullptr)
    std::copy_n(score, experts, keys);
  else
#pragma omp simd
    for (std::int64_t e = 0; e < experts; ++e) keys[e] = score[e] + bias[e];
  select_top_k(experts, num_picks, keys, picks);

  const T scaling = static_cast<T>(options.scaling);
  if (weights_are_softmax_over_picks(options)) {
    softmax_over_picks(z, picks, num_picks, weights);
    for (std::int64_t k = 0; k < num_picks; ++k) weights[k] *= scaling;
    return;
  }
  T picked_sum = 0;
  for (std::int64_t k = 0; k < num_picks; ++k) picked_sum += weights[k] = probs[picks[k]];
  const T factor = options.renormalise ? scaling / numerics::at_least_tiny(picked_sum) : scaling;
  for (std::int64_t k = 0; k < num_picks; ++k) weights[k] *= factor;
  if (options.scoring == Scoring::sigmoid) {
    const T inverse = T(1) / numerics::at_least_tiny(sigmoid_sum);
#pragma omp simd
    for (std::int64_t e = 0; e < experts; ++e) probs[e] *= inverse;
  }
}

// What does not depend on the token in the gradient of the auxiliary losses: dL/dp_e without the entropy of
// the token, and the factors of the two other terms.
template <class T>
struct AuxiliaryGradient {
  bool any = false;
  std::vector<T> d_probs;  // [E]
  T token_entropy = 0;     // dL/dH_t
  T z_loss = 0;            // dL/dlse_t = z_loss * lse_t
};

template <class T>
AuxiliaryGradient<T> auxiliary_gradient(const double* sums, const RoutingExtents& extents,
                                        std::int64_t num_tokens, double balance_scale,
                                        const BalanceOptions& balance) {
  const auto tokens = static_cast<double>(num_tokens), experts = static_cast<double>(extents.experts);
  const double entropy = balance_scale * numerics::entropy_scale(extents.experts) / tokens;
  AuxiliaryGradient<T> out;
  out.any = balance_scale != 0.0 && (balance.balance != 0.0 || balance.z_loss != 0.0 ||
                                     balance.token_entropy != 0.0 || balance.batch_entropy != 0.0);
  out.token_entropy = static_cast<T>(balance.token_entropy * entropy);
  out.z_loss = static_cast<T>(2.0 * balance.z_loss * balance_scale / tokens);
  for (std::int64_t e = 0; e < extents.experts; ++e) {
    const double share = sums[e] / (static_cast<double>(extents.picks) * tokens);
    const double mean_prob = sums[extents.experts + e] / tokens;
    out.d_probs.push_back(
        static_cast<T>(numerics::d_prob_of_batch(balance_scale * balance.balance * experts, share, tokens,
                                                 balance.batch_entropy * entropy, mean_prob)));
  }
  return out;
}

// dz_j = p_j (G_j - sum_i p_i G_i) of a softmax with G = dL/dp; for sigmoid scores p = s / sum(s) the same
// times (1 - s_j). `dz` holds G and receives dz.
template <class T>
void through_probs(const T* z, const T* p, std::int64_t experts, bool sigmoid, T* dz) {
  T mean = 0;
#pragma omp simd reduction(+ : mean)
  for (std::int64_t e = 0; e < experts; ++e) mean += p[e] * dz[e];
  if (!sigmoid) {
#pragma omp simd
    for (std::int64_t e = 0; e < experts; ++e) dz[e] = p[e] * (dz[e] - mean);
    return;
  }
#pragma omp simd
  for (std::int64_t e = 0; e < experts; ++e) dz[e] = p[e] * (dz[e] - mean) * (T(1) - numerics::sigmoid(z[e]));
}

// G without the constants: the entropy of the token has dH_t/dp_e = -(ln p_e + 1), and the 1 cancels.
template <class T>
void fill_d_probs(const T* p, std::int64_t experts, const AuxiliaryGradient<T>& aux, T* g) {
  if (aux.token_entropy == T(0)) {
    std::copy_n(aux.d_probs.data(), experts, g);
    return;
  }
  const T* constant = aux.d_probs.data();
#pragma omp simd
  for (std::int64_t e = 0; e < experts; ++e)
    g[e] = constant[e] - aux.token_entropy * numerics::log_prob(p[e]);
}

template <class T>
void route_token_backward(const T* d_weights, const T* z, const std::int32_t* picks, const T* p, T lse,
                          const RoutingExtents& extents, const RouterOptions& options,
                          const AuxiliaryGradient<T>& aux, T* dz, T* scratch) {
  const std::int64_t experts = extents.experts, num_picks = extents.picks;
  const T scaling = static_cast<T>(options.scaling);
  const bool sigmoid = options.scoring == Scoring::sigmoid;
  const bool picks_through_probs = !sigmoid && !weights_are_softmax_over_picks(options);
  fill_d_probs(p, experts, aux, dz);
  if (picks_through_probs)
    for (std::int64_t k = 0; k < num_picks; ++k)
      if (picks[k] >= 0) dz[picks[k]] += scaling * d_weights[k];
  if (aux.any || picks_through_probs) through_probs(z, p, experts, sigmoid, dz);
  if (aux.z_loss != T(0)) {
    const T factor = aux.z_loss * lse;
#pragma omp simd
    for (std::int64_t e = 0; e < experts; ++e)
      dz[e] += factor * (sigmoid ? numerics::exp_fast(z[e] - lse) : p[e]);
  }
  if (picks_through_probs) return;

  // The rest is a function of the picked logits: shares g_k of the weights, dz_k = g_k (u_k - sum_i g_i u_i).
  T* g = scratch;
  if (!sigmoid) {
    softmax_over_picks(z, picks, num_picks, g);
  } else {
    T sum = 0;
    for (std::int64_t k = 0; k < num_picks; ++k)
      sum += g[k] = picks[k] >= 0 ? numerics::sigmoid(z[picks[k]]) : T(0);
    if (options.renormalise)
      for (std::int64_t k = 0; k < num_picks; ++k) g[k] /= numerics::at_least_tiny(sum);
  }
  T mean = 0;
  if (options.renormalise || !sigmoid)
    for (std::int64_t k = 0; k < num_picks; ++k) mean += g[k] * d_weights[k];
  for (std::int64_t k = 0; k < num_picks; ++k) {
    if (picks[k] < 0) continue;
    const T slope = sigmoid ? T(1) - numerics::sigmoid(z[picks[k]]) : T(1);
    dz[picks[k]] += scaling * slope * g[k] * (d_weights[k] - mean);
  }
}

}  // namespace

template <class T>
void route_top_k_forward(const T* logits, const T* selection_bias, const std::uint8_t* valid,
                         const RoutingExtents& extents, const RouterOptions& options, std::int32_t* picks,
                         T* weights, T* probs, T* lse) {
  const std::int64_t experts = extents.experts, num_picks = extents.picks;
  if (selection_bias != nullptr &&
      std::all_of(selection_bias, selection_bias + experts, [](T bias) { return bias == T(0); }))
    selection_bias = nullptr;
#pragma omp parallel if (extents.tokens * experts > kParallelElements)
  {
    std::vector<T> keys(static_cast<std::size_t>(experts));
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < extents.tokens; ++t) {
      if (valid != nullptr && valid[t] == 0) {
        std::fill_n(picks + t * num_picks, num_picks, -1);
        std::fill_n(weights + t * num_picks, num_picks, T(0));
        std::fill_n(probs + t * experts, experts, T(0));
        lse[t] = 0;
        continue;
      }
      route_token(logits + t * experts, selection_bias, extents, options, picks + t * num_picks,
                  weights + t * num_picks, probs + t * experts, lse + t, keys.data());
    }
  }
}

// Blocks of tokens have sums of their own, which are then added in order.
template <class T>
void routing_sums(const std::int32_t* picks, const T* probs, const T* lse, const std::uint8_t* valid,
                  const RoutingExtents& extents, double* sums) {
  const std::int64_t experts = extents.experts, size = 2 * experts + 2;
  const std::int64_t num_blocks = (extents.tokens + kTokenBlock - 1) / kTokenBlock;
  std::vector<double> blocks(static_cast<std::size_t>(num_blocks * size), 0.0);
#pragma omp parallel for schedule(static) if (extents.tokens * experts > kParallelElements)
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    double* counts = blocks.data() + block * size;
    double* prob_sums = counts + experts;
    const std::int64_t end = std::min(extents.tokens, (block + 1) * kTokenBlock);
    for (std::int64_t t = block * kTokenBlock; t < end; ++t) {
      if (valid != nullptr && valid[t] == 0) continue;
      for (std::int64_t pick = t * extents.picks; pick < (t + 1) * extents.picks; ++pick)
        if (picks[pick] >= 0) counts[picks[pick]] += 1.0;
      const T* p = probs + t * experts;
      T entropy = 0;
#pragma omp simd reduction(- : entropy)
      for (std::int64_t e = 0; e < experts; ++e) entropy -= numerics::p_log_p(p[e]);
#pragma omp simd
      for (std::int64_t e = 0; e < experts; ++e) prob_sums[e] += static_cast<double>(p[e]);
      counts[2 * experts] += static_cast<double>(entropy);
      counts[2 * experts + 1] += static_cast<double>(lse[t]) * static_cast<double>(lse[t]);
    }
  }
  for (std::int64_t block = 0; block < num_blocks; ++block)
    for (std::int64_t i = 0; i < size; ++i) sums[i] += blocks[static_cast<std::size_t>(block * size + i)];
}

template <class T>
void route_top_k_backward(const T* d_weights, const T* logits, const std::int32_t* picks, const T* probs,
                          const T* lse, const std::uint8_t* valid, const double* sums,
                          const RoutingExtents& extents, std::int64_t num_tokens, double balance_scale,
                          const RouterOptions& options, const BalanceOptions& balance, T* d_logits) {
  const std::int64_t experts = extents.experts, num_picks = extents.picks;
  const AuxiliaryGradient<T> aux = auxiliary_gradient<T>(sums, extents, num_tokens, balance_scale, balance);
#pragma omp parallel if (extents.tokens * experts > kParallelElements)
  {
    std::vector<T> scratch(static_cast<std::size_t>(num_picks));
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < extents.tokens; ++t) {
      T* dz = d_logits + t * experts;
      if (valid != nullptr && valid[t] == 0) {
        std::fill_n(dz, experts, T(0));
        continue;
      }
      route_token_backward(d_weights + t * num_picks, logits + t * experts, picks + t * num_picks,
                           probs + t * experts, lse[t], extents, options, aux, dz, scratch.data());
    }
  }
}

#define MC_INSTANTIATE(T)                                                                              \
  template void route_top_k_forward<T>(const T*, const T*, const std::uint8_t*, const RoutingExtents&, \
                                       const RouterOptions&, std::int32_t*, T*, T*, T*);               \
  template void routing_sums<T>(const std::int32_t*, const T*, const T*, const std::uint8_t*,          \
                                const RoutingExtents&, double*);                                       \
  template void route_top_k_backward<T>(                                                               \
      const T*, const T*, const std::int32_t*, const T*, const T*, const std::uint8_t*, const double*, \
      const RoutingExtents&, std::int64_t, double, const RouterOptions&, const BalanceOptions&, T*);
MC_INSTANTIATE(float)
MC_INSTANTIATE(double)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cpu
