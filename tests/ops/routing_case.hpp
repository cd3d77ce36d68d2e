// Groups of random tokens for the tests of the gate.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>

#include "moecollab/ops/route_top_k.hpp"
#include "support/gradient_check.hpp"

namespace moecollab::routing_case {

using ops::BalanceOptions;
using ops::RouterOptions;
using ops::Scoring;
using test::random_tensor;

inline constexpr Scoring kScorings[] = {Scoring::softmax_before_top_k, Scoring::softmax_after_top_k,
                                        Scoring::sigmoid};

struct Routed {
  Tensor picks, weights, probs, lse;
};

inline Routed route(ConstTensorView logits, ConstTensorView bias, ConstTensorView valid,
                    const RouterOptions& options) {
  Stream stream;
  const std::int64_t tokens = logits.dim(0);
  Routed out{Tensor(DType::i32, {tokens, options.top_k}), Tensor(logits.dtype, {tokens, options.top_k}),
             Tensor(logits.dtype, logits.shape), Tensor(logits.dtype, {tokens})};
  ops::route_top_k_forward(stream, logits, bias, valid, options, out.picks.view(), out.weights.view(),
                           out.probs.view(), out.lse.view());
  return out;
}

inline Tensor sums_of(const Routed& routed, ConstTensorView valid) {
  Stream stream;
  Tensor sums(DType::f64, {2 * routed.probs.shape()[1] + 2});
  ops::routing_sums(stream, routed.picks.view(), routed.probs.view(), routed.lse.view(), valid, sums.view());
  return sums;
}

inline Tensor make_valid(std::int64_t tokens) {  // every fourth token is padding
  Tensor valid(DType::u8, {tokens});
  for (std::int64_t t = 0; t < tokens; ++t) valid.view().as<std::uint8_t>()[t] = t % 4 == 2 ? 0 : 1;
  return valid;
}
inline std::int64_t num_valid(ConstTensorView valid) {
  const auto* v = valid.as<std::uint8_t>();
  return std::accumulate(v, v + valid.numel(), std::int64_t{0});
}

inline double at(ConstTensorView x, std::int64_t i) {
  return x.dtype == DType::f32 ? static_cast<double>(x.as<float>()[i]) : x.as<double>()[i];
}

// A random group of tokens and the loss sum <d_weights, weights> + balance_scale * auxiliary losses.
struct Problem {
  RouterOptions options;
  BalanceOptions balance;
  double balance_scale;
  Tensor logits, bias, valid, d_weights;
  bool biased;

  Routed forward() const {
    return route(logits.view(), biased ? bias.view() : TensorView{}, valid.view(), options);
  }
  std::int64_t num_tokens() const { return num_valid(valid.view()); }
  Tensor backward(const Routed& routed, ConstTensorView sums) const {
    Stream stream;
    Tensor d_logits = random_tensor(logits.dtype(), logits.shape(), 99);  // must be overwritten
    ops::route_top_k_backward(stream, d_weights.view(), logits.view(), routed.picks.view(),
                              routed.probs.view(), routed.lse.view(), valid.view(), sums, num_tokens(),
                              balance_scale, options, balance, d_logits.view());
    return d_logits;
  }
};

inline Problem make_problem(DType dtype, std::int64_t tokens, std::int64_t experts,
                            const RouterOptions& options, const BalanceOptions& balance, bool biased) {
  Tensor valid = make_valid(tokens);
  Tensor d_weights = random_tensor(dtype, {tokens, options.top_k}, 31);
  for (std::int64_t i = 0; i < d_weights.shape().numel(); ++i)  // the contract: 0 where the pick is -1
    if (valid.view().as<std::uint8_t>()[i / options.top_k] == 0) {
      if (dtype == DType::f32)
        d_weights.view().as<float>()[i] = 0.0f;
      else
        d_weights.view().as<double>()[i] = 0.0;
    }
  return {options,
          balance,
          0.5,
          random_tensor(dtype, {tokens, experts}, 30, 1.5),
          random_tensor(dtype, {experts}, 32, 0.3),
          std::move(valid),
          std::move(d_weights),
          biased};
}

}  // namespace moecollab::routing_case
