// Scaled dot-product attention with grouped query heads, computed in tiles with an online softmax (Dao et
// al., 2022): memory O(S) per head. Query head h reads key/value head h / (H / Hkv).
#pragma once

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

struct AttentionOptions {
  bool causal = true;
  double scale = 1.0;  // usually 1/sqrt(Dh)
};

// q, out [B,S,H,Dh]; k, v [B,S,Hkv,Dh]; lengths [B] i32: keys at or beyond a sequence's length never count;
// rows of `out` at or beyond it are zero. lse [B,H,S] (accumulator type): log of the softmax denominators,
// for backward. Rows of q, k, v and d_out at or beyond the length are never read, but for bf16 on a CUDA
// device, where they may be multiplied with zero: there they must be finite.
void attention_forward(Stream& stream, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                       ConstTensorView lengths, const AttentionOptions& options, TensorView out,
                       TensorView lse);
// With P = softmax rows: dV = P^T dO; dP = dO V^T; dS = P * (dP - rowsum(dO * O)); dQ = scale dS K; dK =
// scale dS^T Q. dq, dk, dv are overwritten (zero beyond the lengths).
void attention_backward(Stream& stream, ConstTensorView d_out, ConstTensorView q, ConstTensorView k,
                        ConstTensorView v, ConstTensorView lengths, ConstTensorView out, ConstTensorView lse,
                        const AttentionOptions& options, TensorView dq, TensorView dk, TensorView dv);
// One new position per sequence against a cache: q, out [B,1,H,Dh]; cache_k, cache_v [B,Smax,Hkv,Dh]; lengths
// [B] i32: how many cache positions (the new one included) are valid.
void attention_decode(Stream& stream, ConstTensorView q, ConstTensorView cache_k, ConstTensorView cache_v,
                      ConstTensorView lengths, double scale, TensorView out);

}  // namespace moecollab::ops
