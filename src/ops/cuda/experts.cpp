// Grouped experts as grouped products: two passes forward, three backward, each one launch over all experts
// (two when the rows of some begin at no multiple of 16 bytes). What an expert does element by element
// happens on the way out of the products, so that nothing but the pre-activations and hidden rows travels.
// Products per row: 6 D F forward, 12 D F backward (adapter: 4 and 8), in multiplications and additions.
#include "ops/cuda/experts.hpp"

#include <vector>

namespace moecollab::ops::cuda {

namespace {

template <class T>
std::int64_t num_rows(const cpu::ExpertWork<T>& expert) {
  return expert.row_end - expert.row_begin;
}

// Where the hidden rows of each expert stand in a scratch tensor shared by all.
template <class T>
std::vector<T*> hidden_rows(Arena& arena, std::span<const cpu::ExpertWork<T>> work) {
  std::int64_t numel = 0;
  for (const cpu::ExpertWork<T>& expert : work) numel += num_rows(expert) * expert.width;
  T* at = arena.tensor(DTypeOf<T>::value, {numel}).template as<T>();
  std::vector<T*> hidden;
  for (const cpu::ExpertWork<T>& expert : work) {
    hidden.push_back(at);
    at += num_rows(expert) * expert.width;
  }
  return hidden;
}

template <class T>
GemmProblem<T> problem(std::int64_t m, std::int64_t n, std::int64_t k, const T* a, const T* b) {
  GemmProblem<T> p;
  p.m = static_cast<std::int32_t>(m);
  p.n = static_cast<std::int32_t>(n);
  p.k = static_cast<std::int32_t>(k);
  p.a = a;
  p.b = b;
  return p;
}

}  // namespace

// saved_gate = x Wg^T, saved_up = x Wu^T, hidden = silu(gate) * up of them as rounded, or relu(up);
// y = hidden Wd^T, for an adapter x + hidden Wd^T.
template <class T>
void experts_forward(Stream& stream, Arena& arena, const T* x, std::int64_t dim,
                     std::span<const cpu::ExpertWork<T>> work, T* y, GemmTile tile) {
  const ArenaScope scope(arena);
  const std::vector<T*> hidden = hidden_rows<T>(arena, work);
  std::vector<GemmProblem<T>> to_hidden, to_output;
  for (std::size_t i = 0; i < work.size(); ++i) {
    const cpu::ExpertWork<T>& expert = work[i];
    const bool gated = expert.kind == ExpertKind::swiglu;
    const std::int64_t rows = num_rows(expert), at = expert.row_begin * dim;
    GemmProblem<T> in = problem(rows, expert.width, dim, x + at, gated ? expert.w_gate : expert.w_up);
    if (gated) in.b2 = expert.w_up;
    in.gate = gated ? expert.saved_gate : nullptr;
    in.up = expert.saved_up;
    in.out = hidden[i];
    to_hidden.push_back(in);
    GemmProblem<T> out = problem(rows, dim, expert.width, static_cast<const T*>(hidden[i]), expert.w_down);
    out.skip = gated ? nullptr : x + at;
    out.out = y + at;
    to_output.push_back(out);
  }
  GemmPlan<T> plan(tile);
  plan.add(GemmPass::hidden_forward, to_hidden);
  plan.add(GemmPass::output_forward, to_output);
  plan.run(stream);
}

// dh = dy Wd; from it and the pre-activations, in their place, da and db, and hidden again;
// dWg += da^T x, dWu += db^T x, dWd += dy^T hidden; dx = da Wg + db Wu, for an adapter dy + da Wu.
template <class T>
void experts_backward(Stream& stream, Arena& arena, const T* dy, const T* x, std::int64_t dim,
                      std::span<const cpu::ExpertWork<T>> work, T* dx, GemmTile tile) {
  const ArenaScope scope(arena);
  const std::vector<T*> hidden = hidden_rows<T>(arena, work);
  std::vector<GemmProblem<T>> to_hidden, to_weights, to_input;
  const auto add_weight = [&](std::int64_t m, std::int64_t n, std::int64_t rows, const T* a, const T* b,
                              float* sum) {
    GemmProblem<T> p = problem(m, n, rows, a, b);
    p.sum = sum;
    to_weights.push_back(p);
  };
  for (std::size_t i = 0; i < work.size(); ++i) {
    const cpu::ExpertWork<T>& expert = work[i];
    const bool gated = expert.kind == ExpertKind::swiglu;
    const std::int64_t rows = num_rows(expert), at = expert.row_begin * dim, width = expert.width;
    GemmProblem<T> to_dh = problem(rows, width, dim, dy + at, expert.w_down);
    to_dh.gate = gated ? expert.saved_gate : nullptr;
    to_dh.up = expert.saved_up;
    to_dh.out = hidden[i];
    to_hidden.push_back(to_dh);

    const T *d_gate = expert.saved_gate, *d_up = expert.saved_up;
    if (expert.d_up != nullptr) {
      if (gated) add_weight(width, dim, rows, d_gate, x + at, expert.d_gate);
      add_weight(width, dim, rows, d_up, x + at, expert.d_up);
      add_weight(dim, width, rows, dy + at, hidden[i], expert.d_down);
    }

    GemmProblem<T> to_dx = gated ? problem(rows, dim, width, d_gate, expert.w_gate)
                                 : problem(rows, dim, width, d_up, expert.w_up);
    if (gated) to_dx.a2 = d_up, to_dx.b2 = expert.w_up;
    to_dx.skip = gated ? nullptr : dy + at;
    to_dx.out = dx + at;
    to_input.push_back(to_dx);
  }
  GemmPlan<T> plan(tile);
  plan.add(GemmPass::hidden_backward, to_hidden);
  plan.add(GemmPass::weight_gradient, to_weights);
  plan.add(GemmPass::input_backward, to_input);
  plan.run(stream);
}

#define MC_INSTANTIATE(T)                                                              \
  template void experts_forward<T>(Stream&, Arena&, const T*, std::int64_t,            \
                                   std::span<const cpu::ExpertWork<T>>, T*, GemmTile); \
  template void experts_backward<T>(Stream&, Arena&, const T*, const T*, std::int64_t, \
                                    std::span<const cpu::ExpertWork<T>>, T*, GemmTile);
MC_INSTANTIATE(float)
MC_INSTANTIATE(BFloat16)
#undef MC_INSTANTIATE

}  // namespace moecollab::ops::cuda
