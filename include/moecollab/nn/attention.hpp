// Multi-head attention with grouped key/value heads, RoPE and optional q/k norm.
#pragma once

#include <cstdint>

#include "moecollab/core/step.hpp"
#include "moecollab/nn/batch.hpp"
#include "moecollab/nn/model_config.hpp"

namespace moecollab::nn {

// Keys and values of the positions seen so far, for decoding: [B,Smax,Hkv,Dh] each.
struct KvCache {
  TensorView k, v;
};

class Attention {
 public:
  struct Saved {
    TensorView q_raw, k_raw;    // [T,H,Dh], [T,Hkv,Dh] before q/k norm; empty() without it
    TensorView q_rstd, k_rstd;  // [T*H], [T*Hkv]
    TensorView q, k, v;         // after norm and RoPE: [B,S,H,Dh], [B,S,Hkv,Dh]
    TensorView out;             // [B,S,H,Dh] before the output projection
    TensorView lse;             // [B,H,S]
  };

  Attention(const ModelConfig& config, std::int64_t layer, const ParamStore& params);

  // x, y [T,D]; positions [T] i32.
  void forward(Step& step, const Batch& batch, ConstTensorView positions, ConstTensorView x, TensorView y,
               Saved& saved) const;
  void backward(Step& step, const Batch& batch, ConstTensorView positions, ConstTensorView dy,
                ConstTensorView x, const Saved& saved, TensorView dx) const;
  // One new token per sequence: x, y [B,D]; positions [B] i32, on the host, is where it goes in the cache.
  // Extends the cache.
  void decode(Step& step, ConstTensorView positions, ConstTensorView x, const KvCache& cache,
              TensorView y) const;

 private:
  void project(Step& step, ConstTensorView positions, ConstTensorView x, Saved& saved) const;

  const ModelConfig& config_;
  double scale_;
  ParamId q_proj_, k_proj_, v_proj_, o_proj_, q_norm_, k_norm_;
};

}  // namespace moecollab::nn
