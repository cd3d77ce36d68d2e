#include "moecollab/ops/stack.hpp"

#include <vector>

#include "ops/check.hpp"
#include "ops/cpu/stack.hpp"
#include "ops/cuda/stack.hpp"

namespace moecollab::ops {
namespace {

// Elements of a row of `stacked` [E,...].
std::int64_t check_stack(const Stream& stream, const char* op, ConstTensorView stacked,
                         std::size_t num_rows) {
  check_device(stream, op, {stacked});
  check_that(stacked.shape.rank() > 0 && stacked.dim(0) == static_cast<std::int64_t>(num_rows), op,
             "shape " + to_string(stacked.shape) + " does not hold " + std::to_string(num_rows) + " rows");
  return num_rows == 0 ? 0 : stacked.numel() / stacked.dim(0);
}

void check_row(const Stream& stream, const char* op, ConstTensorView row, DType dtype, std::int64_t n) {
  check_device(stream, op, {row});
  check_dtype(row, dtype, op, "a row");
  check_that(row.numel() == n, op,
             "a row has " + std::to_string(row.numel()) + " elements, wanted " + std::to_string(n));
}

}  // namespace

void stack_rows(Stream& stream, std::span<const ConstTensorView> rows, TensorView out) {
  constexpr const char* kOp = "stack_rows";
  const std::int64_t n = check_stack(stream, kOp, out, rows.size());
  for (const ConstTensorView& row : rows) check_row(stream, kOp, row, out.dtype, n);
  with_float_type(out.dtype, kOp, [&]<class A, class>() {
    std::vector<const A*> from;
    for (const ConstTensorView& row : rows) from.push_back(row.as<A>());
    on_device(
        stream, [&] { cpu::stack_rows<A>(from, n, out.as<A>()); },
        [&] { cuda::stack_rows<A>(stream, from, n, out.as<A>()); });
  });
}

void add_to_rows(Stream& stream, ConstTensorView in, std::span<const TensorView> rows) {
  constexpr const char* kOp = "add_to_rows";
  const std::int64_t n = check_stack(stream, kOp, in, rows.size());
  for (const TensorView& row : rows)
    if (!row.empty()) check_row(stream, kOp, row, in.dtype, n);
  with_float_type(in.dtype, kOp, [&]<class A, class>() {
    std::vector<A*> to;
    for (const TensorView& row : rows) to.push_back(row.empty() ? nullptr : row.as<A>());
    on_device(
        stream, [&] { cpu::add_to_rows<A>(in.as<A>(), n, to); },
        [&] { cuda::add_to_rows<A>(stream, in.as<A>(), n, to); });
  });
}

}  // namespace moecollab::ops
