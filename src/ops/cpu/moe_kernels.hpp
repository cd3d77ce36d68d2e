// Loops of the routing, permutation and expert operations on host memory. Raw pointers and extents; the
// callers in src/ops have checked them. Each is instantiated for the types its contract names.
#pragma once

#include <cstdint>
#include <span>

#include "moecollab/core/arena.hpp"
#include "moecollab/core/bfloat16.hpp"
#include "moecollab/core/expert_slots.hpp"
#include "moecollab/ops/permute.hpp"
#include "moecollab/ops/route_top_k.hpp"

namespace moecollab::ops::cpu {

// The type in which sums over T run.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

struct RoutingExtents {
  std::int64_t tokens = 0, experts = 0, picks = 0;  // T, E, K
};

// selection_bias and valid may be null. T: float or double.
template <class T>
void route_top_k_forward(const T* logits, const T* selection_bias, const std::uint8_t* valid,
                         const RoutingExtents& extents, const RouterOptions& options, std::int32_t* picks,
                         T* weights, T* probs, T* lse);
template <class T>
void routing_sums(const std::int32_t* picks, const T* probs, const T* lse, const std::uint8_t* valid,
                  const RoutingExtents& extents, double* sums);
template <class T>
void route_top_k_backward(const T* d_weights, const T* logits, const std::int32_t* picks, const T* probs,
                          const T* lse, const std::uint8_t* valid, const double* sums,
                          const RoutingExtents& extents, std::int64_t num_tokens, double balance_scale,
                          const RouterOptions& options, const BalanceOptions& balance, T* d_logits);

// kept may be null. num_rows: elements of order.
void sort_picks(const std::int32_t* picks, std::int64_t num_picks,
                std::span<const std::int32_t> key_of_expert, std::int64_t rows_per_key,
                const std::int64_t* kept, std::int64_t num_rows, std::int32_t* order,
                std::int32_t* position_of_pick, std::int64_t* counts);
void apply_capacity(std::int64_t capacity, std::int64_t ranks, std::int64_t num_keys, std::int64_t* counts);
// num_received: elements of receive_order.
void received_orders(const std::int64_t* counts, std::int64_t ranks, std::int64_t num_keys,
                     const ReceivedRows& rows, std::int64_t num_received, std::int32_t* expert_order,
                     std::int32_t* receive_order);
void gather_rows(const void* x, const std::int32_t* index, std::int64_t divisor, std::int64_t rows,
                 std::int64_t row_bytes, void* y);
// weights may be null: every weight is 1.
template <class T>
void combine_rows(const T* rows, const std::int32_t* position_of_pick, const Accumulator<T>* weights,
                  std::int64_t tokens, std::int64_t picks, std::int64_t dim, T* y);
template <class T>
void combine_rows_backward(const T* dy, const T* rows, const std::int32_t* position_of_pick,
                           const std::int32_t* order, const Accumulator<T>* weights, std::int64_t tokens,
                           std::int64_t picks, std::int64_t num_rows, std::int64_t dim, T* d_rows,
                           Accumulator<T>* d_weights);

// One expert's share of a grouped call. Pointers to weights are those of the expert; saved_* point at its own
// first hidden row. d_* are null when the expert is frozen.
template <class T>
struct ExpertWork {
  ExpertKind kind = ExpertKind::swiglu;
  std::int64_t row_begin = 0, row_end = 0, width = 0;
  const T *w_gate = nullptr, *w_up = nullptr, *w_down = nullptr;
  Accumulator<T>*d_gate = nullptr, *d_up = nullptr, *d_down = nullptr;
  T *saved_gate = nullptr, *saved_up = nullptr;
};
template <class T>
void experts_forward(Arena& arena, const T* x, std::int64_t dim, std::span<const ExpertWork<T>> work, T* y);
template <class T>
void experts_backward(Arena& arena, const T* dy, const T* x, std::int64_t dim,
                      std::span<const ExpertWork<T>> work, T* dx);

}  // namespace moecollab::ops::cpu
