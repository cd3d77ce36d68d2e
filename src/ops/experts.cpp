#include "moecollab/ops/experts.hpp"

#include <vector>

#include "ops/check.hpp"
#include "ops/cpu/moe_kernels.hpp"
#include "ops/cuda/experts.hpp"

namespace moecollab::ops {

namespace {

void check_segment(const ExpertSegment& segment, std::int64_t previous_end, ConstTensorView x,
                   TensorView saved_gate, TensorView saved_up, const char* op) {
  const bool gated = segment.kind == ExpertKind::swiglu;
  check_that(segment.row_begin >= previous_end && segment.row_end >= segment.row_begin &&
                 segment.row_end <= x.dim(0),
             op,
             "segments must follow one another inside [0, " + std::to_string(x.dim(0)) + "), but one is [" +
                 std::to_string(segment.row_begin) + ", " + std::to_string(segment.row_end) + ") after " +
                 std::to_string(previous_end));
  check_rank(segment.w_up, 2, op, "w_up");
  const Shape up{segment.width(), x.dim(1)}, down{x.dim(1), segment.width()};
  check(segment.w_up, x.dtype, up, op, "w_up");
  check(segment.w_down, x.dtype, down, op, "w_down");
  if (gated) check(segment.w_gate, x.dtype, up, op, "w_gate");
  check_that(gated || segment.w_gate.empty(), op, "an adapter has no w_gate");
  const std::int64_t end = segment.saved_begin + (segment.row_end - segment.row_begin) * segment.width();
  check_that(segment.saved_begin >= 0 && end <= saved_up.numel() && (!gated || end <= saved_gate.numel()), op,
             "saved_gate and saved_up must hold layout_saved() elements, but a segment ends at " +
                 std::to_string(end) + " of " + std::to_string(saved_up.numel()));
}

void check_gradients(const ExpertSegment& segment, DType accumulator, const char* op) {
  const bool gated = segment.kind == ExpertKind::swiglu;
  if (segment.d_up.empty() && segment.d_down.empty() && segment.d_gate.empty()) return;  // frozen
  check(segment.d_up, accumulator, segment.w_up.shape, op, "d_up");
  check(segment.d_down, accumulator, segment.w_down.shape, op, "d_down");
  if (gated) check(segment.d_gate, accumulator, segment.w_gate.shape, op, "d_gate");
  check_that(!segment.d_up.empty() && !segment.d_down.empty() && gated == !segment.d_gate.empty(), op,
             "an expert has all of its gradients or none");
}

void check_devices(const Stream& stream, const ExpertSegment& segment, const char* op) {
  check_device(stream, op,
               {segment.w_gate, segment.w_up, segment.w_down, segment.d_gate, segment.d_up, segment.d_down});
}

template <class T>
cpu::ExpertWork<T> work_of(const ExpertSegment& segment, TensorView saved_gate, TensorView saved_up) {
  using A = cpu::Accumulator<T>;
  const bool gated = segment.kind == ExpertKind::swiglu;
  cpu::ExpertWork<T> work;
  work.kind = segment.kind;
  work.row_begin = segment.row_begin;
  work.row_end = segment.row_end;
  work.width = segment.width();
  work.w_up = segment.w_up.as<T>();
  work.w_down = segment.w_down.as<T>();
  work.saved_up = saved_up.as<T>() + segment.saved_begin;
  if (gated) {
    work.w_gate = segment.w_gate.as<T>();
    work.saved_gate = saved_gate.as<T>() + segment.saved_begin;
  }
  if (!segment.d_up.empty()) {
    work.d_up = segment.d_up.as<A>();
    work.d_down = segment.d_down.as<A>();
    if (gated) work.d_gate = segment.d_gate.as<A>();
  }
  return work;
}

// The checked segments that have rows.
template <class T>
std::vector<cpu::ExpertWork<T>> works_of(std::span<const ExpertSegment> segments, TensorView saved_gate,
                                         TensorView saved_up) {
  std::vector<cpu::ExpertWork<T>> works;
  for (const ExpertSegment& segment : segments)
    if (segment.row_end > segment.row_begin) works.push_back(work_of<T>(segment, saved_gate, saved_up));
  return works;
}

}  // namespace

std::int64_t layout_saved(std::span<ExpertSegment> segments) {
  std::int64_t total = 0;
  for (ExpertSegment& segment : segments) {
    segment.saved_begin = total;
    total += (segment.row_end - segment.row_begin) * segment.width();
  }
  return total;
}

void experts_forward(Stream& stream, Arena& arena, ConstTensorView x, std::span<const ExpertSegment> segments,
                     TensorView saved_gate, TensorView saved_up, TensorView y) {
  const char* op = "experts_forward";
  check_device(stream, op, {x, saved_gate, saved_up, y});
  check_rank(x, 2, op, "x");
  check(y, x.dtype, x.shape, op, "y");
  std::int64_t end = 0;
  for (const ExpertSegment& segment : segments) {
    check_segment(segment, end, x, saved_gate, saved_up, op);
    check_devices(stream, segment, op);
    end = segment.row_end;
  }
  on_device(
      stream,
      [&] {
        with_float_type(x.dtype, op, [&]<class T, class A>() {
          cpu::experts_forward<T>(arena, x.as<T>(), x.dim(1), works_of<T>(segments, saved_gate, saved_up),
                                  y.as<T>());
        });
      },
      [&] {
        with_cuda_type(x.dtype, op, [&]<class T>() {
          cuda::experts_forward<T>(stream, arena, x.as<T>(), x.dim(1),
                                   works_of<T>(segments, saved_gate, saved_up), y.as<T>());
        });
      });
}

void experts_backward(Stream& stream, Arena& arena, ConstTensorView dy, ConstTensorView x,
                      std::span<const ExpertSegment> segments, TensorView saved_gate, TensorView saved_up,
                      TensorView dx) {
  const char* op = "experts_backward";
  check_device(stream, op, {dy, x, saved_gate, saved_up, dx});
  check_rank(x, 2, op, "x");
  check(dy, x.dtype, x.shape, op, "dy");
  check(dx, x.dtype, x.shape, op, "dx");
  std::int64_t end = 0;
  for (const ExpertSegment& segment : segments) {
    check_segment(segment, end, x, saved_gate, saved_up, op);
    check_devices(stream, segment, op);
    check_gradients(segment, accumulator_of(x.dtype), op);
    end = segment.row_end;
  }
  on_device(
      stream,
      [&] {
        with_float_type(x.dtype, op, [&]<class T, class A>() {
          cpu::experts_backward<T>(arena, dy.as<T>(), x.as<T>(), x.dim(1),
                                   works_of<T>(segments, saved_gate, saved_up), dx.as<T>());
        });
      },
      [&] {
        with_cuda_type(x.dtype, op, [&]<class T>() {
          cuda::experts_backward<T>(stream, arena, dy.as<T>(), x.as<T>(), x.dim(1),
                                    works_of<T>(segments, saved_gate, saved_up), dx.as<T>());
        });
      });
}

}  // namespace moecollab::ops
