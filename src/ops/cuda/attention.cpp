// Which code computes attention. bf16: cuDNN's engines, whose graphs mask by the lengths on the device, and
// zeros written behind the lengths. The products run over what lies there with weights of zero, so it must be
// finite. Our own kernels: f32, shapes without an engine (widths that are not a multiple of 8, or large),
// memory that is not aligned (an arena's is), and sequences of one position, which cuDNN does not support.
#include "ops/cuda/attention.hpp"

#include <initializer_list>
#include <type_traits>

#include "ops/cuda/attention_engines.hpp"

namespace moecollab::ops::cuda {
namespace {

bool for_cudnn(const AttentionExtents& x, std::initializer_list<const void*> pointers) {
  for (const void* p : pointers)
    if (reinterpret_cast<std::uintptr_t>(p) % 16 != 0) return false;
  return x.S > 1;
}
bool empty(const AttentionExtents& x) { return x.B * x.S * x.H * x.Dh == 0; }

}  // namespace

template <class T>
void attention_forward(Stream& stream, const T* q, const T* k, const T* v, const std::int32_t* lengths,
                       const AttentionExtents& x, T* out, float* lse) {
  if (empty(x)) return;
  if constexpr (std::is_same_v<T, BFloat16>)
    if (for_cudnn(x, {q, k, v, out}) && engine_attention_forward(stream, q, k, v, lengths, x, out, lse)) {
      clear_padding_rows(stream, lengths, x.B, x.S, x.H * x.Dh, out);
      clear_padding_lse(stream, lengths, x.B, x.H, x.S, lse);
      return;
    }
  plain::attention_forward(stream, q, k, v, lengths, x, out, lse);
}

template <class T>
void attention_backward(Stream& stream, const T* d_out, const T* q, const T* k, const T* v,
                        const std::int32_t* lengths, const T* out, const float* lse,
                        const AttentionExtents& x, T* dq, T* dk, T* dv) {
  if (empty(x)) return;
  if constexpr (std::is_same_v<T, BFloat16>)
    if (for_cudnn(x, {d_out, q, k, v, out, dq, dk, dv}) &&
        engine_attention_backward(stream, d_out, q, k, v, lengths, out, lse, x, dq, dk, dv)) {
      clear_padding_rows(stream, lengths, x.B, x.S, x.H * x.Dh, dq);
      clear_padding_rows(stream, lengths, x.B, x.S, x.Hkv * x.Dh, dk);
      clear_padding_rows(stream, lengths, x.B, x.S, x.Hkv * x.Dh, dv);
      return;
    }
  plain::attention_backward(stream, d_out, q, k, v, lengths, out, lse, x, dq, dk, dv);
}

template void attention_forward<float>(Stream&, const float*, const float*, const float*, const std::int32_t*,
                                       const AttentionExtents&, float*, float*);
template void attention_forward<BFloat16>(Stream&, const BFloat16*, const BFloat16*, const BFloat16*,
                                          const std::int32_t*, const AttentionExtents&, BFloat16*, float*);
template void attention_backward<float>(Stream&, const float*, const float*, const float*, const float*,
                                        const std::int32_t*, const float*, const float*,
                                        const AttentionExtents&, float*, float*, float*);
template void attention_backward<BFloat16>(Stream&, const BFloat16*, const BFloat16*, const BFloat16*,
                                           const BFloat16*, const std::int32_t*, const BFloat16*,
                                           const float*, const AttentionExtents&, BFloat16*, BFloat16*,
                                           BFloat16*);

}  // namespace moecollab::ops::cuda
