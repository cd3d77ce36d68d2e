// What `src/ops/<op>.cpp` checks before the arithmetic starts.
#pragma once

#include <initializer_list>
#include <string>

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops {

inline void check_that(bool ok, const char* op, const std::string& rule) {
  if (!ok) throw ShapeError(std::string(op) + ": " + rule);
}
inline void check_shape(ConstTensorView t, const Shape& want, const char* op, const char* name) {
  if (t.shape != want)
    throw ShapeError(std::string(op) + ": " + name + " has shape " + to_string(t.shape) + ", wanted " +
                     to_string(want));
}
inline void check_dtype(ConstTensorView t, DType want, const char* op, const char* name) {
  if (t.dtype != want)
    throw DTypeError(std::string(op) + ": " + name + " is " + to_string(t.dtype) + ", wanted " +
                     to_string(want));
}
inline bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f64;
}
inline void check_float(ConstTensorView t, const char* op, const char* name) {
  if (!is_float(t.dtype))
    throw DTypeError(std::string(op) + ": " + name + " is " + to_string(t.dtype) +
                     ", wanted f32, bf16 or f64");
}
inline void check_rank(ConstTensorView t, int rank, const char* op, const char* name) {
  if (t.shape.rank() != rank)
    throw ShapeError(std::string(op) + ": " + name + " has shape " + to_string(t.shape) + ", wanted " +
                     std::to_string(rank) + " axes");
}
inline void check(ConstTensorView t, DType dtype, const Shape& shape, const char* op, const char* name) {
  check_dtype(t, dtype, op, name);
  check_shape(t, shape, op, name);
}
// Ids that index memory: a bad one is read past the end, so the price of a look at each is worth paying.
inline void check_ids(ConstTensorView ids, std::int64_t low, std::int64_t high, const char* op,
                      const char* name) {
  const auto* p = ids.as<std::int32_t>();
  for (std::int64_t i = 0; i < ids.numel(); ++i)
    if (p[i] < low || p[i] >= high)
      throw ShapeError(std::string(op) + ": " + name + "[" + std::to_string(i) + "] is " +
                       std::to_string(p[i]) + ", wanted at least " + std::to_string(low) + " and less than " +
                       std::to_string(high));
}
// Every tensor of an operation lies where its stream works. Views that are empty() lie nowhere.
inline void check_device(const Stream& stream, const char* op,
                         std::initializer_list<ConstTensorView> tensors) {
  for (const ConstTensorView& tensor : tensors)
    if (!tensor.empty() && tensor.device != stream.device())
      throw InternalError(std::string(op) + ": a tensor of shape " + to_string(tensor.shape) + " is on " +
                          to_string(tensor.device) + ", the stream works on " + to_string(stream.device()));
}
inline constexpr bool kWithCuda = MC_WITH_CUDA;
// The arithmetic of the stream's device. A build without CUDA has no streams of that device.
template <class Cpu, class Cuda>
void on_device(const Stream& stream, [[maybe_unused]] Cpu&& cpu, [[maybe_unused]] Cuda&& cuda) {
  if (stream.device() == Device::cpu) return cpu();
  if constexpr (kWithCuda) return cuda();
}

// Calls f.template operator()<A, Acc>() with the compute type A and its accumulator type.
template <class F>
void with_float_type(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f.template operator()<float, float>();
    case DType::bf16:
      return f.template operator()<BFloat16, float>();
    case DType::f64:
      return f.template operator()<double, double>();
    default:
      throw DTypeError(std::string(op) + ": no kernel for " + to_string(dtype) + ", use f32, bf16 or f64");
  }
}

// The same for CUDA kernels: f32 and bf16. Nothing in a build without CUDA, where an unoptimised program
// would else refer to kernels that it never calls.
template <class F>
void with_cuda_type([[maybe_unused]] DType dtype, [[maybe_unused]] const char* op, [[maybe_unused]] F&& f) {
  if constexpr (kWithCuda) {
    switch (dtype) {
      case DType::f32:
        return f.template operator()<float>();
      case DType::bf16:
        return f.template operator()<BFloat16>();
      default:
        throw DTypeError(std::string(op) + ": no CUDA kernel for " + to_string(dtype) +
                         ", use f32 or bf16, or the CPU");
    }
  }
}

}  // namespace moecollab::ops
