// What `src/ops/<op>.cpp` checks before the arithmetic starts.
#pragma once

#include <string>

#include "moecollab/core/error.hpp"
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

}  // namespace moecollab::ops
