// Reading: nothing is trusted beyond what the checks here and in impl.cpp establish.
#include <fmt/format.h>

#include <algorithm>

#include "h5/impl.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/h5/file.hpp"

namespace moecollab::h5 {

namespace {

constexpr std::int64_t kMaxExtent = std::int64_t{1} << 48;  // keeps products of extents inside 64 bits

struct RawInfo {
  Handle type;
  Shape shape;
  std::int64_t numel = 0;
  std::int64_t storage_bytes = 0;
  std::int64_t offset_bytes = -1;
};

// Type, shape and place of a dataset; refuses one whose bytes do not all lie in the file.
RawInfo raw_info(File::Impl& impl, const std::string& name) {
  const hid_t dataset = impl.dataset(name);
  RawInfo info;
  info.type = Handle(H5Dget_type(dataset), H5Tclose);
  const Handle space(H5Dget_space(dataset), H5Sclose);
  if (!info.type.valid() || !space.valid()) impl.fail(name, "is damaged: " + library_message());
  const H5S_class_t kind = H5Sget_simple_extent_type(space.get());
  const int rank = kind == H5S_SCALAR ? 0 : H5Sget_simple_extent_ndims(space.get());
  if ((kind != H5S_SCALAR && kind != H5S_SIMPLE) || rank < 0 || rank > Shape::kMaxRank)
    impl.fail(name, fmt::format("has {} axes; 0 to {} are read", rank, Shape::kMaxRank));
  hsize_t extents[Shape::kMaxRank] = {};
  if (rank > 0 && H5Sget_simple_extent_dims(space.get(), extents, nullptr) != rank)
    impl.fail(name, "is damaged: " + library_message());
  std::int64_t dims[Shape::kMaxRank] = {};
  const auto element_bytes = static_cast<std::int64_t>(H5Tget_size(info.type.get()));
  std::int64_t bytes = element_bytes;
  info.numel = 1;
  for (int axis = 0; axis < rank; ++axis) {
    dims[axis] = static_cast<std::int64_t>(extents[axis]);
    const bool fits =
        dims[axis] >= 0 && dims[axis] <= kMaxExtent && !__builtin_mul_overflow(bytes, dims[axis], &bytes);
    if (!fits) impl.fail(name, fmt::format("claims an extent of {} on axis {}", extents[axis], axis));
    info.numel *= dims[axis];
  }
  info.shape = Shape::from(dims, rank);
  info.storage_bytes = static_cast<std::int64_t>(H5Dget_storage_size(dataset));
  const haddr_t offset = H5Dget_offset(dataset);
  H5Eclear2(H5E_DEFAULT);
  if (info.numel > 0) {
    info.offset_bytes = static_cast<std::int64_t>(offset);
    const bool inside = offset != HADDR_UNDEF && info.offset_bytes >= 0 && info.storage_bytes == bytes &&
                        (impl.writing || (info.offset_bytes <= impl.file_bytes &&
                                          bytes <= impl.file_bytes - info.offset_bytes));
    if (!inside)
      impl.fail(name,
                fmt::format("claims {} bytes that are not all in the file of {} bytes: truncated or damaged",
                            bytes, impl.file_bytes));
  }
  return info;
}

}  // namespace

bool File::contains(const std::string& name) const {
  if (!impl_->file.valid()) return false;
  std::string foreign;
  return reachable(impl_->file.get(), normalised(name), foreign);
}

bool File::is_group(const std::string& name) const {
  const std::string group = normalised(name);
  return contains(group) && H5Iget_type(impl_->open_object(group).get()) == H5I_GROUP;
}

std::vector<std::string> File::list(const std::string& name) const {
  const std::string group = normalised(name);
  const Handle opened = impl_->open_object(group);
  if (H5Iget_type(opened.get()) != H5I_GROUP) impl_->fail(group, "is not a group");
  std::vector<std::string> names;
  const auto note = [](hid_t, const char* link, const H5L_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(link);
    return 0;
  };
  if (H5Literate(opened.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, note, &names) < 0)
    impl_->fail(group, "cannot be listed: " + library_message());
  std::sort(names.begin(), names.end());
  return names;
}

DatasetInfo File::info(const std::string& name) const {
  const std::string dataset = normalised(name);
  const RawInfo raw = raw_info(*impl_, dataset);
  const auto dtype = dtype_of(raw.type.get());
  if (!dtype)
    impl_->fail(dataset, "has an element type other than f32, bf16, f64, i32, i64, u8, u16 (little-endian)");
  return {*dtype, raw.shape, raw.offset_bytes};
}

Tensor File::read(const std::string& name) const {
  const DatasetInfo from = info(name);
  Tensor tensor(from.dtype, from.shape);
  read(name, tensor.view());
  return tensor;
}

void File::read(const std::string& name, TensorView out) const {
  const std::string dataset = normalised(name);
  const DatasetInfo from = info(dataset);
  if (from.dtype != out.dtype || from.shape != out.shape)
    impl_->fail(dataset, fmt::format("holds {} {}, expected {} {}", to_string(from.dtype),
                                     to_string(from.shape), to_string(out.dtype), to_string(out.shape)));
  if (out.numel() == 0) return;
  const Handle type = file_type(out.dtype);
  if (H5Dread(impl_->dataset(dataset), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data) < 0)
    impl_->fail(dataset, "cannot be read: " + library_message());
}

void File::read_rows(const std::string& name, std::int64_t begin, TensorView out) const {
  const std::string dataset = normalised(name);
  const DatasetInfo from = info(dataset);
  bool fits = from.dtype == out.dtype && from.shape.rank() > 0 && from.shape.rank() == out.shape.rank() &&
              begin >= 0 && begin + out.dim(0) <= from.shape[0];
  hsize_t start[Shape::kMaxRank] = {static_cast<hsize_t>(begin)};
  hsize_t count[Shape::kMaxRank] = {};
  hsize_t extents[Shape::kMaxRank] = {};
  for (int axis = 0; fits && axis < from.shape.rank(); ++axis) {
    fits = axis == 0 || from.shape[axis] == out.shape[axis];
    count[axis] = static_cast<hsize_t>(out.shape[axis]);
    extents[axis] = static_cast<hsize_t>(from.shape[axis]);
  }
  if (!fits)
    impl_->fail(dataset,
                fmt::format("holds {} {}; asked for {} {} from row {}", to_string(from.dtype),
                            to_string(from.shape), to_string(out.dtype), to_string(out.shape), begin));
  if (out.numel() == 0) return;
  const Handle type = file_type(out.dtype);
  const Handle memory(H5Screate_simple(from.shape.rank(), count, nullptr), H5Sclose);
  const Handle space(H5Screate_simple(from.shape.rank(), extents, nullptr), H5Sclose);
  if (!memory.valid() || !space.valid() ||
      H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start, nullptr, count, nullptr) < 0 ||
      H5Dread(impl_->dataset(dataset), type.get(), memory.get(), space.get(), H5P_DEFAULT, out.data) < 0)
    impl_->fail(dataset, "cannot be read: " + library_message());
}

namespace {

bool is_plain_string(hid_t type) {
  return H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 && H5Tget_size(type) > 0;
}

std::string unpadded(const char* text, std::size_t width) {
  while (width > 0 && text[width - 1] == '\0') --width;
  return {text, width};
}

// One number of exactly this type.
void read_number(File::Impl& impl, const std::string& owner, const std::string& name, const Handle& attribute,
                 DType dtype, void* value) {
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  const Handle space(H5Aget_space(attribute.get()), H5Sclose);
  const Handle ours = file_type(dtype);
  if (!type.valid() || !space.valid() || !ours.valid() || H5Tequal(type.get(), ours.get()) <= 0 ||
      H5Sget_simple_extent_npoints(space.get()) != 1)
    impl.fail(owner, fmt::format("attribute '{}' is not one {}", name, to_string(dtype)));
  if (H5Aread(attribute.get(), ours.get(), value) < 0)
    impl.fail(owner, fmt::format("attribute '{}' cannot be read: {}", name, library_message()));
}

}  // namespace

std::vector<std::string> File::read_strings(const std::string& name) const {
  const std::string dataset = normalised(name);
  const RawInfo raw = raw_info(*impl_, dataset);
  if (!is_plain_string(raw.type.get()) || raw.shape.rank() != 1)
    impl_->fail(dataset, "is not a 1-D list of fixed-length strings");
  const std::size_t width = H5Tget_size(raw.type.get());
  std::vector<char> padded(width * static_cast<std::size_t>(raw.numel));
  if (raw.numel > 0 &&
      H5Dread(impl_->dataset(dataset), raw.type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, padded.data()) < 0)
    impl_->fail(dataset, "cannot be read: " + library_message());
  std::vector<std::string> strings;
  for (std::size_t i = 0; i < static_cast<std::size_t>(raw.numel); ++i)
    strings.push_back(unpadded(padded.data() + i * width, width));
  return strings;
}

std::vector<std::string> File::list_attributes(const std::string& object) const {
  const std::string owner = normalised(object);
  const Handle opened = impl_->open_object(owner);
  std::vector<std::string> names;
  const auto note = [](hid_t, const char* name, const H5A_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return 0;
  };
  if (H5Aiterate2(opened.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, note, &names) < 0)
    impl_->fail(owner, "its attributes cannot be listed: " + library_message());
  std::sort(names.begin(), names.end());
  return names;
}

AttributeType File::attribute_type(const std::string& object, const std::string& name) const {
  const Handle attribute = impl_->open_attribute(normalised(object), name);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  if (!type.valid()) return AttributeType::other;
  if (is_plain_string(type.get())) return AttributeType::string;
  const auto dtype = dtype_of(type.get());
  if (dtype == DType::i64) return AttributeType::i64;
  return dtype == DType::f64 ? AttributeType::f64 : AttributeType::other;
}

bool File::has_attribute(const std::string& object, const std::string& name) const {
  const Handle owner = impl_->open_object(normalised(object));
  const htri_t found = H5Aexists(owner.get(), name.c_str());
  H5Eclear2(H5E_DEFAULT);
  return found > 0;
}

std::string File::attribute_string(const std::string& object, const std::string& name) const {
  const std::string owner = normalised(object);
  const Handle attribute = impl_->open_attribute(owner, name);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  const Handle space(H5Aget_space(attribute.get()), H5Sclose);
  if (!type.valid() || !space.valid() || !is_plain_string(type.get()) ||
      H5Sget_simple_extent_npoints(space.get()) != 1)
    impl_->fail(owner, fmt::format("attribute '{}' is not one fixed-length string", name));
  const std::size_t width = H5Tget_size(type.get());
  if (static_cast<std::int64_t>(width) > impl_->file_bytes && !impl_->writing)
    impl_->fail(owner, fmt::format("attribute '{}' claims {} bytes, more than the file has", name, width));
  std::vector<char> padded(width);
  if (H5Aread(attribute.get(), type.get(), padded.data()) < 0)
    impl_->fail(owner, fmt::format("attribute '{}' cannot be read: {}", name, library_message()));
  return unpadded(padded.data(), width);
}

std::int64_t File::attribute_i64(const std::string& object, const std::string& name) const {
  const std::string owner = normalised(object);
  const Handle attribute = impl_->open_attribute(owner, name);
  std::int64_t value = 0;
  read_number(*impl_, owner, name, attribute, DType::i64, &value);
  return value;
}

double File::attribute_f64(const std::string& object, const std::string& name) const {
  const std::string owner = normalised(object);
  const Handle attribute = impl_->open_attribute(owner, name);
  double value = 0;
  read_number(*impl_, owner, name, attribute, DType::f64, &value);
  return value;
}

}  // namespace moecollab::h5
