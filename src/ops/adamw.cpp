#include "moecollab/ops/adamw.hpp"

#include "ops/check.hpp"
#include "ops/cpu/adamw.hpp"
#include "ops/cuda/adamw.hpp"

namespace moecollab::ops {
namespace {

void check_range(const Stream& stream, const char* op, const AdamWRange& r) {
  check_device(stream, op, {r.grad, r.master, r.exp_avg, r.exp_avg_sq, r.value});
  check_rank(r.grad, 1, op, "grad [n]");
  check_float(r.grad, op, "grad");
  check_dtype(r.grad, accumulator_of(r.grad.dtype), op, "grad");
  check(r.master, r.grad.dtype, r.grad.shape, op, "master");
  check(r.exp_avg, r.grad.dtype, r.grad.shape, op, "exp_avg");
  check(r.exp_avg_sq, r.grad.dtype, r.grad.shape, op, "exp_avg_sq");
  check_that(r.step >= 1, op,
             "step is " + std::to_string(r.step) + ", but counts from 1 (it divides the moments)");
  if (r.value.empty()) return;
  check_float(r.value, op, "value");
  check_shape(r.value, r.grad.shape, op, "value");
  check_dtype(r.grad, accumulator_of(r.value.dtype), op, "grad");
}

}  // namespace

void adamw_update(Stream& stream, std::span<const AdamWRange> ranges, const AdamWOptions& options) {
  constexpr const char* kOp = "adamw_update";
  for (const AdamWRange& range : ranges) check_range(stream, kOp, range);
  on_device(
      stream,
      [&] {
        for (const AdamWRange& range : ranges)
          with_float_type(range.value.empty() ? range.grad.dtype : range.value.dtype, kOp,
                          [&]<class A, class Acc>() { cpu::adamw_update<A, Acc>(range, options); });
      },
      [&] {
        for (const AdamWRange& range : ranges) check_dtype(range.grad, DType::f32, kOp, "grad on cuda");
        cuda::adamw_update(stream, ranges, options);
      });
}

}  // namespace moecollab::ops
