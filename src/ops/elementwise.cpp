#include "moecollab/ops/elementwise.hpp"

#include "ops/check.hpp"
#include "ops/cpu/elementwise.hpp"

namespace moecollab::ops {

void cast(Stream& stream, ConstTensorView x, TensorView y) {
  constexpr const char* kOp = "cast";
  check_cpu(stream, kOp);
  check_shape(y, x.shape, kOp, "y");
  with_float_type(x.dtype, kOp, [&]<class From, class>() {
    with_float_type(y.dtype, kOp, [&]<class To, class>() { cpu::cast(x.as<From>(), x.numel(), y.as<To>()); });
  });
}

void add(Stream& stream, ConstTensorView x, TensorView y) {
  constexpr const char* kOp = "add";
  check_cpu(stream, kOp);
  check(y, x.dtype, x.shape, kOp, "y");
  with_float_type(x.dtype, kOp,
                  [&]<class A, class Acc>() { cpu::add<A, Acc>(x.as<A>(), x.numel(), y.as<A>()); });
}

void scale(Stream& stream, double factor, TensorView y) {
  constexpr const char* kOp = "scale";
  check_cpu(stream, kOp);
  with_float_type(y.dtype, kOp,
                  [&]<class A, class Acc>() { cpu::scale<A, Acc>(factor, y.numel(), y.as<A>()); });
}

void fill_zero(Stream& stream, TensorView y) {
  check_cpu(stream, "fill_zero");
  if (y.numel() > 0) cpu::fill_zero(y.data, y.size_bytes());
}

double sum_of_squares(Stream& stream, ConstTensorView x) {
  constexpr const char* kOp = "sum_of_squares";
  check_cpu(stream, kOp);
  double sum = 0.0;
  with_float_type(x.dtype, kOp, [&]<class A, class>() { sum = cpu::sum_of_squares(x.as<A>(), x.numel()); });
  return sum;
}

bool all_finite(Stream& stream, ConstTensorView x) {
  constexpr const char* kOp = "all_finite";
  check_cpu(stream, kOp);
  bool finite = true;
  with_float_type(x.dtype, kOp, [&]<class A, class>() { finite = cpu::all_finite(x.as<A>(), x.numel()); });
  return finite;
}

}  // namespace moecollab::ops
