#include "moecollab/ops/route_top_k.hpp"

#include "moecollab/numerics/routing.hpp"
#include "ops/check.hpp"
#include "ops/cpu/moe_kernels.hpp"
#include "ops/cuda/route_top_k.hpp"

namespace moecollab::ops {

namespace {

template <class F>
void with_router_type(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(static_cast<float*>(nullptr));
    case DType::f64:
      return f(static_cast<double*>(nullptr));
    default:
      throw DTypeError(std::string(op) + ": router values are " + to_string(dtype) +
                       ", wanted f32 or f64; the router never works in bf16");
  }
}

const std::uint8_t* valid_or_null(ConstTensorView valid, std::int64_t tokens, const char* op) {
  if (valid.empty()) return nullptr;
  check_shape(valid, {tokens}, op, "valid");
  return valid.as<std::uint8_t>();
}

cpu::RoutingExtents extents_of(ConstTensorView picks, ConstTensorView probs, const char* op) {
  check_that(probs.shape.rank() == 2, op, "scores must be [T, E], not " + to_string(probs.shape));
  check_that(
      picks.shape.rank() == 2 && picks.dim(0) == probs.dim(0), op,
      "picks must be [T, K] with T = " + std::to_string(probs.dim(0)) + ", not " + to_string(picks.shape));
  const cpu::RoutingExtents extents{probs.dim(0), probs.dim(1), picks.dim(1)};
  check_that(extents.picks >= 1 && extents.picks <= extents.experts, op,
             "top_k must lie in [1, E = " + std::to_string(extents.experts) + "], not " +
                 std::to_string(extents.picks));
  return extents;
}

static_assert(cuda::kMaxExperts == kMaxExpertsOnCuda && cuda::kMaxPicks == kMaxPicksOnCuda);

void check_cuda_extents(const cpu::RoutingExtents& extents, const char* op) {
  check_that(extents.experts <= cuda::kMaxExperts && extents.picks <= cuda::kMaxPicks, op,
             "on CUDA there are at most " + std::to_string(cuda::kMaxExperts) + " experts and " +
                 std::to_string(cuda::kMaxPicks) + " picks, not " + std::to_string(extents.experts) +
                 " and " + std::to_string(extents.picks));
}

}  // namespace

void route_top_k_forward(Stream& stream, ConstTensorView logits, ConstTensorView selection_bias,
                         ConstTensorView valid, const RouterOptions& options, TensorView picks,
                         TensorView weights, TensorView probs, TensorView lse) {
  const char* op = "route_top_k_forward";
  check_device(stream, op, {logits, selection_bias, valid, picks, weights, probs, lse});
  const cpu::RoutingExtents extents = extents_of(picks, logits, op);
  check_that(options.top_k == extents.picks, op,
             "options.top_k is " + std::to_string(options.top_k) +
                 ", but picks has K = " + std::to_string(extents.picks));
  check_shape(weights, picks.shape, op, "weights");
  check_shape(probs, logits.shape, op, "probs");
  check_shape(lse, {extents.tokens}, op, "lse");
  if (!selection_bias.empty()) check_shape(selection_bias, {extents.experts}, op, "selection_bias");
  const std::uint8_t* valid_tokens = valid_or_null(valid, extents.tokens, op);
  on_device(
      stream,
      [&] {
        with_router_type(logits.dtype, op, [&]<class T>(T*) {
          cpu::route_top_k_forward<T>(
              logits.as<T>(), selection_bias.empty() ? nullptr : selection_bias.as<T>(), valid_tokens,
              extents, options, picks.as<std::int32_t>(), weights.as<T>(), probs.as<T>(), lse.as<T>());
        });
      },
      [&] {
        check_cuda_extents(extents, op);
        cuda::route_top_k_forward(stream, logits.as<float>(),
                                  selection_bias.empty() ? nullptr : selection_bias.as<float>(), valid_tokens,
                                  extents, options, picks.as<std::int32_t>(), weights.as<float>(),
                                  probs.as<float>(), lse.as<float>());
      });
}

void routing_sums(Stream& stream, ConstTensorView picks, ConstTensorView probs, ConstTensorView lse,
                  ConstTensorView valid, TensorView sums) {
  const char* op = "routing_sums";
  check_device(stream, op, {picks, probs, lse, valid, sums});
  const cpu::RoutingExtents extents = extents_of(picks, probs, op);
  check_shape(lse, {extents.tokens}, op, "lse");
  check_shape(sums, {2 * extents.experts + 2}, op, "sums");
  const std::uint8_t* valid_tokens = valid_or_null(valid, extents.tokens, op);
  on_device(
      stream,
      [&] {
        with_router_type(probs.dtype, op, [&]<class T>(T*) {
          cpu::routing_sums<T>(picks.as<std::int32_t>(), probs.as<T>(), lse.as<T>(), valid_tokens, extents,
                               sums.as<double>());
        });
      },
      [&] {
        check_cuda_extents(extents, op);
        cuda::routing_sums(stream, picks.as<std::int32_t>(), probs.as<float>(), lse.as<float>(), valid_tokens,
                           extents, sums.as<double>());
      });
}

// With f_i = c_i / (K N) and P_i = Pbar_i = (1/N) sum_t p_ti:
// balance = a E sum_i f_i P_i (Fedus et al., 2022); z_loss = b (1/N) sum_t lse_t^2 (Zoph et al., 2022);
// entropy = (l_t H_tok - l_b H_bat) / ln E.
BalanceLosses balance_losses(ConstTensorView sums, std::int64_t num_experts, std::int64_t top_k,
                             std::int64_t num_tokens, const BalanceOptions& options) {
  const char* op = "balance_losses";
  check_that(num_experts >= 1 && top_k >= 1, op, "E and K must be at least 1");
  check_that(
      num_tokens >= 1, op,
      "the global micro-batch has " + std::to_string(num_tokens) + " valid tokens; it needs at least one");
  check_shape(sums, {2 * num_experts + 2}, op, "sums");
  const double* counts = sums.as<double>();
  const double* prob_sums = counts + num_experts;
  const auto tokens = static_cast<double>(num_tokens);

  double overlap = 0.0, batch_entropy = 0.0;
  for (std::int64_t e = 0; e < num_experts; ++e) {
    const double mean_prob = prob_sums[e] / tokens;
    overlap += counts[e] / (static_cast<double>(top_k) * tokens) * mean_prob;
    batch_entropy -= numerics::p_log_p(mean_prob);
  }
  BalanceLosses losses;
  losses.balance = options.balance * static_cast<double>(num_experts) * overlap;
  losses.z_loss = options.z_loss * counts[2 * num_experts + 1] / tokens;
  const double scale = numerics::entropy_scale(num_experts);
  losses.token_entropy = scale * counts[2 * num_experts] / tokens;
  losses.batch_entropy = scale * batch_entropy;
  losses.entropy =
      options.token_entropy * losses.token_entropy - options.batch_entropy * losses.batch_entropy;
  return losses;
}

void route_top_k_backward(Stream& stream, ConstTensorView d_weights, ConstTensorView logits,
                          ConstTensorView picks, ConstTensorView probs, ConstTensorView lse,
                          ConstTensorView valid, ConstTensorView sums, std::int64_t num_tokens,
                          double balance_scale, const RouterOptions& options, const BalanceOptions& balance,
                          TensorView d_logits) {
  const char* op = "route_top_k_backward";
  check_device(stream, op, {d_weights, logits, picks, probs, lse, valid, sums, d_logits});
  const cpu::RoutingExtents extents = extents_of(picks, logits, op);
  check_shape(d_weights, picks.shape, op, "d_weights");
  check_shape(probs, logits.shape, op, "probs");
  check_shape(lse, {extents.tokens}, op, "lse");
  check_shape(sums, {2 * extents.experts + 2}, op, "sums");
  check_shape(d_logits, logits.shape, op, "d_logits");
  check_that(
      num_tokens >= 1, op,
      "the global micro-batch has " + std::to_string(num_tokens) + " valid tokens; it needs at least one");
  const std::uint8_t* valid_tokens = valid_or_null(valid, extents.tokens, op);
  on_device(
      stream,
      [&] {
        with_router_type(logits.dtype, op, [&]<class T>(T*) {
          cpu::route_top_k_backward<T>(d_weights.as<T>(), logits.as<T>(), picks.as<std::int32_t>(),
                                       probs.as<T>(), lse.as<T>(), valid_tokens, sums.as<double>(), extents,
                                       num_tokens, balance_scale, options, balance, d_logits.as<T>());
        });
      },
      [&] {
        check_cuda_extents(extents, op);
        cuda::route_top_k_backward(stream, d_weights.as<float>(), logits.as<float>(),
                                   picks.as<std::int32_t>(), probs.as<float>(), lse.as<float>(), valid_tokens,
                                   sums.as<double>(), extents, num_tokens, balance_scale, options, balance,
                                   d_logits.as<float>());
      });
}

}  // namespace moecollab::ops
