#include "moecollab/ops/attention.hpp"

#include "ops/check.hpp"
#include "ops/cpu/attention.hpp"
#include "ops/cuda/attention.hpp"

namespace moecollab::ops {
namespace {

// Shapes of q [B,S,H,Dh] and k, v [B,Skv,Hkv,Dh], and lengths [B] in [0, Skv]; S is that of k. On a device
// the lengths are taken as they are.
AttentionExtents check_inputs(Stream& stream, const char* op, ConstTensorView q, ConstTensorView k,
                              ConstTensorView v, ConstTensorView lengths) {
  check_device(stream, op, {q, k, v, lengths});
  check_rank(q, 4, op, "q [B,S,H,Dh]");
  check_rank(k, 4, op, "k [B,S,Hkv,Dh]");
  check_float(q, op, "q");
  const std::int64_t B = q.dim(0), S = k.dim(1), H = q.dim(2), Hkv = k.dim(2), Dh = q.dim(3);
  check_that(
      Hkv > 0 && H % Hkv == 0, op,
      std::to_string(H) + " query heads do not divide into " + std::to_string(Hkv) + " key/value heads");
  check(k, q.dtype, {B, S, Hkv, Dh}, op, "k");
  check(v, q.dtype, {B, S, Hkv, Dh}, op, "v");
  check(lengths, DType::i32, {B}, op, "lengths");
  if (lengths.device == Device::cpu) check_ids(lengths, 0, S + 1, op, "lengths");
  return {B, S, H, Hkv, Dh, true, 1.0};
}

}  // namespace

void attention_forward(Stream& stream, ConstTensorView q, ConstTensorView k, ConstTensorView v,
                       ConstTensorView lengths, const AttentionOptions& options, TensorView out,
                       TensorView lse) {
  constexpr const char* kOp = "attention_forward";
  auto extents = check_inputs(stream, kOp, q, k, v, lengths);
  check_device(stream, kOp, {out, lse});
  extents.causal = options.causal;
  extents.scale = options.scale;
  check_shape(q, {extents.B, extents.S, extents.H, extents.Dh}, kOp, "q");
  check(out, q.dtype, q.shape, kOp, "out");
  check(lse, accumulator_of(q.dtype), {extents.B, extents.H, extents.S}, kOp, "lse");
  on_device(
      stream,
      [&] {
        with_float_type(q.dtype, kOp, [&]<class A, class Acc>() {
          cpu::attention_forward(q.as<A>(), k.as<A>(), v.as<A>(), lengths.as<std::int32_t>(), extents,
                                 out.as<A>(), lse.as<Acc>());
        });
      },
      [&] {
        with_cuda_type(q.dtype, kOp, [&]<class T>() {
          cuda::attention_forward(stream, q.as<T>(), k.as<T>(), v.as<T>(), lengths.as<std::int32_t>(),
                                  extents, out.as<T>(), lse.as<float>());
        });
      });
}

void attention_backward(Stream& stream, ConstTensorView d_out, ConstTensorView q, ConstTensorView k,
                        ConstTensorView v, ConstTensorView lengths, ConstTensorView out, ConstTensorView lse,
                        const AttentionOptions& options, TensorView dq, TensorView dk, TensorView dv) {
  constexpr const char* kOp = "attention_backward";
  auto extents = check_inputs(stream, kOp, q, k, v, lengths);
  check_device(stream, kOp, {d_out, out, lse, dq, dk, dv});
  extents.causal = options.causal;
  extents.scale = options.scale;
  check_shape(q, {extents.B, extents.S, extents.H, extents.Dh}, kOp, "q");
  check(d_out, q.dtype, q.shape, kOp, "d_out");
  check(out, q.dtype, q.shape, kOp, "out");
  check(lse, accumulator_of(q.dtype), {extents.B, extents.H, extents.S}, kOp, "lse");
  check(dq, q.dtype, q.shape, kOp, "dq");
  check(dk, q.dtype, k.shape, kOp, "dk");
  check(dv, q.dtype, v.shape, kOp, "dv");
  on_device(
      stream,
      [&] {
        with_float_type(q.dtype, kOp, [&]<class A, class Acc>() {
          cpu::attention_backward(d_out.as<A>(), q.as<A>(), k.as<A>(), v.as<A>(), lengths.as<std::int32_t>(),
                                  out.as<A>(), lse.as<Acc>(), extents, dq.as<A>(), dk.as<A>(), dv.as<A>());
        });
      },
      [&] {
        with_cuda_type(q.dtype, kOp, [&]<class T>() {
          cuda::attention_backward(stream, d_out.as<T>(), q.as<T>(), k.as<T>(), v.as<T>(),
                                   lengths.as<std::int32_t>(), out.as<T>(), lse.as<float>(), extents,
                                   dq.as<T>(), dk.as<T>(), dv.as<T>());
        });
      });
}

void attention_decode(Stream& stream, ConstTensorView q, ConstTensorView cache_k, ConstTensorView cache_v,
                      ConstTensorView lengths, double scale, TensorView out) {
  constexpr const char* kOp = "attention_decode";
  auto extents = check_inputs(stream, kOp, q, cache_k, cache_v, lengths);
  check_device(stream, kOp, {out});
  extents.scale = scale;
  check_shape(q, {extents.B, 1, extents.H, extents.Dh}, kOp, "q");
  check(out, q.dtype, q.shape, kOp, "out");
  on_device(
      stream,
      [&] {
        with_float_type(q.dtype, kOp, [&]<class A, class Acc>() {
          cpu::attention_decode<A, Acc>(q.as<A>(), cache_k.as<A>(), cache_v.as<A>(),
                                        lengths.as<std::int32_t>(), extents, out.as<A>());
        });
      },
      [&] {
        with_cuda_type(q.dtype, kOp, [&]<class T>() {
          cuda::attention_decode(stream, q.as<T>(), cache_k.as<T>(), cache_v.as<T>(),
                                 lengths.as<std::int32_t>(), extents, out.as<T>());
        });
      });
}

}  // namespace moecollab::ops
