#include "ops/cuda/attention_graph.hpp"

namespace moecollab::ops::cuda {
namespace {

// [B,S,H,Dh] in memory, seen as [B,H,S,Dh]; the same with S and Dh exchanged.
Axes strides_of(const GraphShape& x, std::int64_t row_heads) {
  return {x.sequence * row_heads * x.width, x.width, row_heads * x.width, 1};
}
Axes exchanged(Axes axes) {
  std::swap(axes[2], axes[3]);
  return axes;
}

struct Extents {
  explicit Extents(const GraphShape& x)
      : q{x.batch, x.heads, x.sequence, x.width},
        kv{x.batch, x.kv_heads, x.sequence, x.width},
        scores{x.batch, x.heads, x.sequence, x.sequence},
        rows{x.batch, x.heads, x.sequence, 1},
        q_strides(strides_of(x, x.row_heads)),
        kv_strides(strides_of(x, x.row_kv_heads)) {}
  Axes q, kv, scores, rows, q_strides, kv_strides;
};

// Scores that count: queries and keys within the length, and keys up to the query. Masked in this order, the
// engines know them. A padded query sees nothing; what its row becomes is overwritten afterwards.
GraphTensor masked(Graph& g, const GraphShape& x, GraphTensor scores, const GraphTensor& lengths) {
  const GraphTensor hidden = g.scalar(kHidden);
  const auto flags = [&] { return g.between(scores.extents, CUDNN_DATA_BOOLEAN); };
  const auto compare = [&](cudnnPointwiseMode_t mode, const GraphTensor& left, const GraphTensor& right) {
    return g.pointwise(mode, {left, right}, flags(), CUDNN_DATA_BOOLEAN);
  };
  const GraphTensor query = compare(CUDNN_POINTWISE_CMP_LT, g.index(scores, 2), lengths);
  const GraphTensor key = compare(CUDNN_POINTWISE_CMP_LT, g.index(scores, 3), lengths);
  const GraphTensor both = compare(CUDNN_POINTWISE_LOGICAL_AND, query, key);
  scores = g.pointwise(CUDNN_POINTWISE_BINARY_SELECT, {scores, hidden, both}, g.between(scores.extents));
  if (!x.causal) return scores;
  const GraphTensor row = g.index(scores, 2), column = g.index(scores, 3);
  const GraphTensor past = compare(CUDNN_POINTWISE_CMP_GE, row, column);
  return g.pointwise(CUDNN_POINTWISE_BINARY_SELECT, {scores, hidden, past}, g.between(scores.extents));
}

}  // namespace

Graph forward_graph(const GraphShape& x) {
  Graph g;
  const Extents e(x);
  const GraphTensor lengths = g.input(kLengths, {x.batch, 1, 1, 1}, {1, 1, 1, 1}, CUDNN_DATA_INT32);
  const GraphTensor q = g.input(kQ, e.q, e.q_strides);
  const GraphTensor k = g.input(kK, exchanged(e.kv), exchanged(e.kv_strides));
  const GraphTensor v = g.input(kV, e.kv, e.kv_strides);
  GraphTensor scores = g.product(q, k, g.between(e.scores), {&lengths, &lengths, nullptr});
  scores = g.pointwise(CUDNN_POINTWISE_MUL, {scores, g.scalar(kScale)}, g.between(e.scores));
  scores = masked(g, x, scores, lengths);
  const GraphTensor max = g.reduce(CUDNN_REDUCE_TENSOR_MAX, scores, g.between(e.rows));
  const GraphTensor below = g.pointwise(CUDNN_POINTWISE_SUB, {scores, max}, g.between(e.scores));
  const GraphTensor weights = g.pointwise(CUDNN_POINTWISE_EXP, {below}, g.between(e.scores));
  const GraphTensor sum = g.reduce(CUDNN_REDUCE_TENSOR_ADD, weights, g.between(e.rows));
  const GraphTensor log = g.pointwise(CUDNN_POINTWISE_LOG, {sum}, g.between(e.rows));
  g.pointwise(CUDNN_POINTWISE_ADD, {max, log}, g.output(kLse, e.rows, {}, CUDNN_DATA_FLOAT));
  const GraphTensor p =
      g.pointwise(CUDNN_POINTWISE_DIV, {weights, sum}, g.between(e.scores, CUDNN_DATA_BFLOAT16));
  g.product(p, v, g.output(kOut, e.q, e.q_strides), {&lengths, nullptr, &lengths});
  return g;
}

Graph backward_graph(const GraphShape& x) {
  Graph g;
  const Extents e(x);
  const GraphTensor lengths = g.input(kLengths, {x.batch, 1, 1, 1}, {1, 1, 1, 1}, CUDNN_DATA_INT32);
  const GraphTensor q = g.input(kQ, e.q, e.q_strides), d_out = g.input(kDOut, e.q, e.q_strides);
  const GraphTensor k = g.input(kK, exchanged(e.kv), exchanged(e.kv_strides));
  const GraphTensor v = g.input(kV, exchanged(e.kv), exchanged(e.kv_strides));
  const GraphTensor out = g.input(kOut, e.q, e.q_strides);
  const GraphTensor lse = g.input(kLse, e.rows, {}, CUDNN_DATA_FLOAT);
  const GraphTensor scale = g.scalar(kScale);
  // Products [S,Dh] of the transposed weights; with fewer key heads, of each query head, summed over the
  // group.
  const auto transposed = [&](const GraphTensor& weights) {
    const std::int64_t S = x.sequence;
    return g.reshape(weights, g.between(e.scores, CUDNN_DATA_BFLOAT16, {x.heads * S * S, S * S, 1, S}));
  };
  const auto key_gradient = [&](const GraphTensor& weights, const GraphTensor& right, std::int64_t uid) {
    const Graph::Sizes sizes{&lengths, nullptr, &lengths};
    const GraphTensor result = g.output(uid, e.kv, e.kv_strides);
    if (x.heads == x.kv_heads) return g.product(transposed(weights), right, result, sizes);
    const GraphTensor each =
        g.product(transposed(weights), right, g.between(e.q, CUDNN_DATA_BFLOAT16), sizes);
    return g.reduce(CUDNN_REDUCE_TENSOR_ADD, each, result);
  };

  const GraphTensor terms = g.pointwise(CUDNN_POINTWISE_MUL, {d_out, out}, g.between(e.q));
  const GraphTensor sums = g.reduce(CUDNN_REDUCE_TENSOR_ADD, terms, g.between(e.rows));
  const GraphTensor dots =
      g.pointwise(CUDNN_POINTWISE_MUL, {sums, g.scalar(kOne)}, g.output(kDots, e.rows, {}, CUDNN_DATA_FLOAT));

  GraphTensor scores = g.product(q, k, g.between(e.scores), {&lengths, &lengths, nullptr});
  scores = g.pointwise(CUDNN_POINTWISE_MUL, {scores, scale}, g.between(e.scores));
  scores = g.pointwise(CUDNN_POINTWISE_SUB, {scores, lse}, g.between(e.scores));
  scores = masked(g, x, scores, lengths);
  const GraphTensor p = g.pointwise(CUDNN_POINTWISE_EXP, {scores}, g.between(e.scores));
  key_gradient(p, d_out, kDV);

  GraphTensor d = g.product(d_out, v, g.between(e.scores), {&lengths, &lengths, nullptr});
  d = g.pointwise(CUDNN_POINTWISE_SUB, {d, dots}, g.between(e.scores));
  d = g.pointwise(CUDNN_POINTWISE_MUL, {d, p}, g.between(e.scores));
  d = g.pointwise(CUDNN_POINTWISE_MUL, {d, scale}, g.between(e.scores, CUDNN_DATA_BFLOAT16));
  key_gradient(d, q, kDK);

  const GraphTensor keys = g.reshape(k, g.between(e.kv, CUDNN_DATA_BFLOAT16, e.kv_strides));
  g.product(d, keys, g.output(kDQ, e.q, e.q_strides), {&lengths, nullptr, &lengths});
  return g;
}

}  // namespace moecollab::ops::cuda
