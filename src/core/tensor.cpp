#include "moecollab/core/tensor.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

#include "core/memory.hpp"
#include "moecollab/core/device.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab {

std::int64_t size_bytes(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::f64:
      return 8;
    case DType::i32:
      return 4;
    case DType::i64:
      return 8;
    case DType::u8:
      return 1;
    case DType::u16:
      return 2;
  }
  throw DTypeError("unknown element type");
}

const char* to_string(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f64:
      return "f64";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
    case DType::u8:
      return "u8";
    case DType::u16:
      return "u16";
  }
  return "?";
}

DType dtype_from_string(const std::string& name) {
  for (const DType dtype :
       {DType::f32, DType::bf16, DType::f64, DType::i32, DType::i64, DType::u8, DType::u16})
    if (name == to_string(dtype)) return dtype;
  throw UsageError("unknown element type '" + name + "': use f32, bf16 or f64");
}

DType accumulator_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::bf16:
      return DType::f32;
    case DType::f64:
      return DType::f64;
    default:
      throw DTypeError(std::string("no accumulator for integer type ") + to_string(dtype));
  }
}

const char* to_string(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

Shape::Shape(std::initializer_list<std::int64_t> dims)
    : Shape(from(dims.begin(), static_cast<int>(dims.size()))) {}

Shape Shape::from(const std::int64_t* dims, int rank) {
  if (rank > kMaxRank) throw ShapeError("a shape has at most 4 axes, got " + std::to_string(rank));
  Shape shape;
  shape.rank_ = rank;
  for (int axis = 0; axis < rank; ++axis) {
    if (dims[axis] < 0) throw ShapeError("negative extent " + std::to_string(dims[axis]));
    shape.dims_[static_cast<std::size_t>(axis)] = dims[axis];
  }
  return shape;
}

std::int64_t Shape::numel() const {
  std::int64_t n = 1;
  for (int axis = 0; axis < rank_; ++axis) n *= (*this)[axis];
  return n;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int axis = 0; axis < shape.rank(); ++axis)
    text += (axis > 0 ? ", " : "") + std::to_string(shape[axis]);
  return text + "]";
}

namespace detail {
void throw_dtype(DType have, DType want) {
  throw DTypeError(std::string("tensor holds ") + to_string(have) + ", asked for " + to_string(want));
}
void throw_rows(const Shape& shape, std::int64_t begin, std::int64_t end) {
  throw ShapeError("rows [" + std::to_string(begin) + ", " + std::to_string(end) + ") of a tensor of shape " +
                   to_string(shape));
}
}  // namespace detail

namespace {

struct RowRange {
  Shape shape;
  std::int64_t offset_bytes;
};

RowRange row_range(const Shape& shape, DType dtype, std::int64_t begin, std::int64_t end) {
  if (shape.rank() == 0 || begin < 0 || end < begin || end > shape[0]) detail::throw_rows(shape, begin, end);
  std::int64_t dims[Shape::kMaxRank];
  std::int64_t row = 1;
  dims[0] = end - begin;
  for (int axis = 1; axis < shape.rank(); ++axis) row *= dims[axis] = shape[axis];
  return {Shape::from(dims, shape.rank()), begin * row * size_bytes(dtype)};
}

void check_reshape(const Shape& from, const Shape& to) {
  if (from.numel() != to.numel())
    throw ShapeError("cannot view a tensor of shape " + to_string(from) + " as " + to_string(to));
}

}  // namespace

TensorView TensorView::rows(std::int64_t begin, std::int64_t end) const {
  const RowRange range = row_range(shape, dtype, begin, end);
  return {data == nullptr ? nullptr : static_cast<char*>(data) + range.offset_bytes, dtype, device,
          range.shape};
}

TensorView TensorView::reshaped(const Shape& to) const {
  check_reshape(shape, to);
  return {data, dtype, device, to};
}

ConstTensorView ConstTensorView::rows(std::int64_t begin, std::int64_t end) const {
  const RowRange range = row_range(shape, dtype, begin, end);
  return {data == nullptr ? nullptr : static_cast<const char*>(data) + range.offset_bytes, dtype, device,
          range.shape};
}

ConstTensorView ConstTensorView::reshaped(const Shape& to) const {
  check_reshape(shape, to);
  return {data, dtype, device, to};
}

void detail::FreeMemory::operator()(void* p) const {
  if (device == Device::cuda)
    cuda_release(p);
  else if (pinned)
    pinned_release(p);
  else
    std::free(p);
}

Tensor::Tensor(DType dtype, const Shape& shape, Device device) : dtype_(dtype), shape_(shape) {
  const std::int64_t bytes = (std::max<std::int64_t>(size_bytes(), 1) + 63) / 64 * 64;
  if (device == Device::cuda) {
    memory_ = std::unique_ptr<void, detail::FreeMemory>(cuda_allocate(bytes), {device});
    cuda_set_bytes(memory_.get(), 0, bytes);
    return;
  }
  void* p = std::aligned_alloc(64, static_cast<std::size_t>(bytes));
  if (p == nullptr) throw std::bad_alloc();
  std::memset(p, 0, static_cast<std::size_t>(bytes));
  memory_ = std::unique_ptr<void, detail::FreeMemory>(p, {});
}

Tensor Tensor::pinned(DType dtype, const Shape& shape) {
  Tensor tensor;
  tensor.dtype_ = dtype;
  tensor.shape_ = shape;
  const std::int64_t bytes = std::max<std::int64_t>(tensor.size_bytes(), 1);
  void* p = pinned_allocate(bytes);
  if (p == nullptr) return Tensor(dtype, shape);
  std::memset(p, 0, static_cast<std::size_t>(bytes));
  tensor.memory_ = std::unique_ptr<void, detail::FreeMemory>(p, {Device::cpu, true});
  return tensor;
}

namespace {

template <class From, class To>
void convert(ConstTensorView from, TensorView to) {
  const From* a = from.as<From>();
  To* b = to.as<To>();
  for (std::int64_t i = 0, n = from.numel(); i < n; ++i) {
    if constexpr (std::is_same_v<From, BFloat16>)
      b[i] = static_cast<To>(static_cast<float>(a[i]));
    else if constexpr (std::is_same_v<To, BFloat16>)
      b[i] = BFloat16(static_cast<float>(a[i]));
    else
      b[i] = static_cast<To>(a[i]);
  }
}

template <class From>
void convert_from(ConstTensorView from, TensorView to) {
  switch (to.dtype) {
    case DType::f32:
      return convert<From, float>(from, to);
    case DType::bf16:
      return convert<From, BFloat16>(from, to);
    case DType::f64:
      return convert<From, double>(from, to);
    default:
      detail::throw_dtype(to.dtype, from.dtype);
  }
}

}  // namespace

void copy_convert(ConstTensorView from, TensorView to) {
  if (from.shape != to.shape)
    throw ShapeError("copy from shape " + to_string(from.shape) + " to shape " + to_string(to.shape));
  if (from.numel() == 0) return;
  if (from.device != Device::cpu || to.device != Device::cpu) {
    Tensor storage;
    const ConstTensorView source = on_host(from, storage);
    if (to.device == Device::cpu) return copy_convert(source, to);
    const Tensor converted(to.dtype, to.shape);
    copy_convert(source, converted.view());
    return cuda_copy_bytes(to.data, converted.view().data, to.size_bytes());
  }
  if (from.dtype == to.dtype) {
    std::memcpy(to.data, from.data, static_cast<std::size_t>(from.size_bytes()));
    return;
  }
  switch (from.dtype) {
    case DType::f32:
      return convert_from<float>(from, to);
    case DType::bf16:
      return convert_from<BFloat16>(from, to);
    case DType::f64:
      return convert_from<double>(from, to);
    default:
      detail::throw_dtype(from.dtype, to.dtype);
  }
}

}  // namespace moecollab
