#include "moecollab/ops/elementwise.hpp"

#include <vector>

#include "moecollab/core/device.hpp"
#include "ops/check.hpp"
#include "ops/cpu/elementwise.hpp"
#include "ops/cuda/elementwise.hpp"
#include "ops/cuda/sums.hpp"

namespace moecollab::ops {

void cast(Stream& stream, ConstTensorView x, TensorView y) {
  constexpr const char* kOp = "cast";
  check_device(stream, kOp, {x, y});
  check_shape(y, x.shape, kOp, "y");
  with_float_type(x.dtype, kOp, [&]<class From, class>() {
    with_float_type(y.dtype, kOp, [&]<class To, class>() {
      on_device(
          stream, [&] { cpu::cast(x.as<From>(), x.numel(), y.as<To>()); },
          [&] { cuda::cast(stream, x.as<From>(), x.numel(), y.as<To>()); });
    });
  });
}

void add(Stream& stream, ConstTensorView x, TensorView y) {
  constexpr const char* kOp = "add";
  check_device(stream, kOp, {x, y});
  check(y, x.dtype, x.shape, kOp, "y");
  with_float_type(x.dtype, kOp, [&]<class A, class Acc>() {
    on_device(
        stream, [&] { cpu::add<A, Acc>(x.as<A>(), x.numel(), y.as<A>()); },
        [&] { cuda::add(stream, x.as<A>(), x.numel(), y.as<A>()); });
  });
}

void scale(Stream& stream, double factor, TensorView y) {
  constexpr const char* kOp = "scale";
  check_device(stream, kOp, {y});
  with_float_type(y.dtype, kOp, [&]<class A, class Acc>() {
    on_device(
        stream, [&] { cpu::scale<A, Acc>(factor, y.numel(), y.as<A>()); },
        [&] { cuda::scale(stream, factor, y.numel(), y.as<A>()); });
  });
}

void fill_zero(Stream& stream, TensorView y) {
  check_device(stream, "fill_zero", {y});
  on_device(
      stream,
      [&] {
        if (y.numel() > 0) cpu::fill_zero(y.data, y.size_bytes());
      },
      [&] { moecollab::fill_zero(stream, y); });
}

void sum_of_squares(Stream& stream, std::span<const ConstTensorView> parts, TensorView sums) {
  constexpr const char* kOp = "sum_of_squares";
  const auto num_parts = static_cast<std::int64_t>(parts.size());
  check_device(stream, kOp, {sums});
  check(sums, DType::f64, {num_parts}, kOp, "sums [parts]");
  for (const ConstTensorView& part : parts) {
    check_device(stream, kOp, {part});
    check_dtype(part, parts[0].dtype, kOp, "a part");
  }
  if (parts.empty()) return;
  with_float_type(parts[0].dtype, kOp, [&]<class A, class>() {
    on_device(
        stream,
        [&] {
          for (std::int64_t i = 0; i < num_parts; ++i) {
            const ConstTensorView& part = parts[static_cast<std::size_t>(i)];
            sums.as<double>()[i] = cpu::sum_of_squares(part.as<A>(), part.numel());
          }
        },
        [&] {
          std::vector<cuda::SumPart<A>> list;
          for (const ConstTensorView& part : parts) list.push_back({part.as<A>(), part.numel()});
          cuda::sum_of_squares<A>(stream, list, sums.as<double>());
        });
  });
}

void sum(Stream& stream, ConstTensorView x, TensorView sums) {
  constexpr const char* kOp = "sum";
  check_device(stream, kOp, {x, sums});
  check(sums, DType::f64, {1}, kOp, "sums");
  with_float_type(x.dtype, kOp, [&]<class A, class>() {
    on_device(
        stream, [&] { sums.as<double>()[0] = cpu::sum(x.as<A>(), x.numel()); },
        [&] {
          const cuda::SumPart<A> part{x.as<A>(), x.numel()};
          cuda::sum<A>(stream, {&part, 1}, sums.as<double>());
        });
  });
}

void add_scalars(Stream& stream, std::span<const std::int64_t> offsets, std::span<const double> values,
                 TensorView y) {
  constexpr const char* kOp = "add_scalars";
  check_device(stream, kOp, {y});
  check_that(
      offsets.size() == values.size(), kOp,
      std::to_string(offsets.size()) + " offsets do not fit " + std::to_string(values.size()) + " values");
  for (const std::int64_t offset : offsets)
    check_that(
        offset >= 0 && offset < y.numel(), kOp,
        "offset " + std::to_string(offset) + " lies outside of " + std::to_string(y.numel()) + " elements");
  with_float_type(y.dtype, kOp, [&]<class A, class>() {
    on_device(
        stream, [&] { cpu::add_scalars(offsets, values, y.as<A>()); },
        [&] { cuda::add_scalars(stream, offsets, values, y.as<A>()); });
  });
}

}  // namespace moecollab::ops
