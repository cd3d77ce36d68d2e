// Tensors: element type, device, shape, a view that never owns, and an owner.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include "moecollab/core/bfloat16.hpp"

namespace moecollab {

enum class DType : std::uint8_t { f32, bf16, f64, i32, i64, u8, u16 };

std::int64_t size_bytes(DType dtype);              // bytes of one element
const char* to_string(DType dtype);                // "f32", "bf16", ...
DType dtype_from_string(const std::string& name);  // throws UsageError

// The type in which sums over `dtype` are accumulated, and in which gradients, moments and master weights are
// kept: f64 for f64, f32 for f32 and bf16. Throws DTypeError for integers.
DType accumulator_of(DType dtype);

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<std::uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct DTypeOf<std::uint16_t> {
  static constexpr DType value = DType::u16;
};

enum class Device : std::uint8_t { cpu, cuda };
const char* to_string(Device device);

// Up to four extents, row-major. Rank 0 is a scalar (numel 1).
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims);  // throws ShapeError: more than four or a negative extent
  static Shape from(const std::int64_t* dims, int rank);

  int rank() const { return rank_; }
  std::int64_t operator[](int axis) const { return dims_[static_cast<std::size_t>(axis)]; }
  std::int64_t numel() const;
  bool operator==(const Shape&) const = default;

 private:
  std::array<std::int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};
std::string to_string(const Shape& shape);  // "[2, 3]"

namespace detail {
[[noreturn]] void throw_dtype(DType have, DType want);
[[noreturn]] void throw_rows(const Shape& shape, std::int64_t begin, std::int64_t end);
}  // namespace detail

// Never owns. Contiguous, row-major. `data` may be null when numel is 0.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  Shape shape;

  bool empty() const { return data == nullptr; }
  std::int64_t numel() const { return shape.numel(); }
  std::int64_t size_bytes() const { return numel() * moecollab::size_bytes(dtype); }
  std::int64_t dim(int axis) const { return shape[axis]; }

  template <class T>
  T* as() const {
    if (dtype != DTypeOf<T>::value) detail::throw_dtype(dtype, DTypeOf<T>::value);
    return static_cast<T*>(data);
  }
  TensorView rows(std::int64_t begin, std::int64_t end) const;  // [begin, end) of the first axis
  TensorView reshaped(const Shape& to) const;                   // same elements; throws ShapeError
};

struct ConstTensorView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  Shape shape;

  ConstTensorView() = default;
  ConstTensorView(const void* data_in, DType dtype_in, Device device_in, const Shape& shape_in)
      : data(data_in), dtype(dtype_in), device(device_in), shape(shape_in) {}
  ConstTensorView(const TensorView& view)  // NOLINT: a mutable view is also a const one
      : data(view.data), dtype(view.dtype), device(view.device), shape(view.shape) {}

  bool empty() const { return data == nullptr; }
  std::int64_t numel() const { return shape.numel(); }
  std::int64_t size_bytes() const { return numel() * moecollab::size_bytes(dtype); }
  std::int64_t dim(int axis) const { return shape[axis]; }

  template <class T>
  const T* as() const {
    if (dtype != DTypeOf<T>::value) detail::throw_dtype(dtype, DTypeOf<T>::value);
    return static_cast<const T*>(data);
  }
  ConstTensorView rows(std::int64_t begin, std::int64_t end) const;
  ConstTensorView reshaped(const Shape& to) const;
};

namespace detail {
struct FreeMemory {
  Device device = Device::cpu;
  bool pinned = false;
  void operator()(void* p) const;
};
}  // namespace detail

// Owns zero-filled memory: on the host 64-byte aligned, on a CUDA device 256-byte aligned. Move-only.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, const Shape& shape, Device device = Device::cpu);
  // Host memory that a CUDA device writes to without the host waiting; plain host memory where there is none.
  static Tensor pinned(DType dtype, const Shape& shape);

  TensorView view() const { return {memory_.get(), dtype_, memory_.get_deleter().device, shape_}; }
  bool empty() const { return memory_ == nullptr; }
  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  std::int64_t size_bytes() const { return shape_.numel() * moecollab::size_bytes(dtype_); }

 private:
  std::unique_ptr<void, detail::FreeMemory> memory_;
  DType dtype_ = DType::f32;
  Shape shape_;
};

// Copies (same shape required) with conversion between f32, bf16 and f64, or between equal types. Throws
// ShapeError or DTypeError. Memory of any device, runs at once; for tests, initialisation and files, not for
// the step.
void copy_convert(ConstTensorView from, TensorView to);

}  // namespace moecollab
