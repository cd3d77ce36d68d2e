// Opening, writing and publishing a file.
#include "moecollab/h5/file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "h5/impl.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::h5 {

namespace {

// fsync of a file or a directory. Returns an empty string, or what failed.
std::string sync_path(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC);
  if (fd < 0) return fmt::format("cannot open '{}' to sync it: {}", path, std::strerror(errno));
  const bool synced = ::fsync(fd) == 0;
  const int error = errno;
  ::close(fd);
  return synced ? "" : fmt::format("cannot sync '{}': {}", path, std::strerror(error));
}

std::string parent_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// The same bits for the same content: no times are recorded.
Handle creation_list(hid_t list_class) {
  Handle plist(H5Pcreate(list_class), H5Pclose);
  if (!plist.valid() || H5Pset_obj_track_times(plist.get(), false) < 0) return {};
  return plist;
}

Handle link_list() {
  Handle plist(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  if (!plist.valid() || H5Pset_char_encoding(plist.get(), H5T_CSET_UTF8) < 0) return {};
  return plist;
}

// Format of HDF5 1.10 (checksummed metadata). No locks: published files never change, and locks fail on many
// cluster file systems.
Handle access_list() {
  Handle plist(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  if (!plist.valid() || H5Pset_libver_bounds(plist.get(), H5F_LIBVER_V110, H5F_LIBVER_V110) < 0 ||
      H5Pset_fclose_degree(plist.get(), H5F_CLOSE_SEMI) < 0 ||
      H5Pset_file_locking(plist.get(), false, true) < 0)
    return {};
  return plist;
}

Handle simple_space(const Shape& shape) {
  hsize_t dims[Shape::kMaxRank] = {};
  for (int axis = 0; axis < shape.rank(); ++axis) dims[axis] = static_cast<hsize_t>(shape[axis]);
  if (shape.rank() == 0) return {H5Screate(H5S_SCALAR), H5Sclose};
  return {H5Screate_simple(shape.rank(), dims, nullptr), H5Sclose};
}

// Contiguous, with its place fixed at once. Invalid on failure.
Handle new_dataset(hid_t file, const std::string& name, const Handle& type, const Handle& space) {
  const Handle links = link_list();
  const Handle creation = creation_list(H5P_DATASET_CREATE);
  if (!type.valid() || !space.valid() || !links.valid() || !creation.valid() ||
      H5Pset_layout(creation.get(), H5D_CONTIGUOUS) < 0 ||
      H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY) < 0)
    return {};
  return {H5Dcreate2(file, name.c_str(), type.get(), space.get(), links.get(), creation.get(), H5P_DEFAULT),
          H5Dclose};
}

}  // namespace

File::File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
File::File(File&&) noexcept = default;
File& File::operator=(File&&) noexcept = default;

File::~File() {
  if (impl_ == nullptr || !impl_->writing || impl_->committed) return;
  impl_->datasets.clear();
  impl_->file.close();
  ::unlink(impl_->disk_path.c_str());
}

const std::string& File::path() const { return impl_->path; }

File File::create_new(const std::string& path) {
  silence_library();
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->disk_path = path + ".tmp";
  impl->writing = true;
  const Handle access = access_list();
  const Handle creation = creation_list(H5P_FILE_CREATE);
  if (access.valid() && creation.valid())
    impl->file =
        Handle(H5Fcreate(impl->disk_path.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()), H5Fclose);
  if (!impl->file.valid()) impl->fail("", "cannot be created: " + library_message());
  return File(std::move(impl));
}

File File::open_read(const std::string& path) {
  silence_library();
  auto impl = std::make_unique<Impl>();
  impl->path = impl->disk_path = path;
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0)
    impl->fail("", fmt::format("cannot be read: {}", std::strerror(errno)));
  if (!S_ISREG(status.st_mode)) impl->fail("", "is not a regular file");
  impl->file_bytes = status.st_size;
  const Handle access = access_list();
  if (access.valid()) impl->file = Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  if (!impl->file.valid())
    impl->fail("", fmt::format("is not an HDF5 file or is damaged ({} bytes): {}", impl->file_bytes,
                               library_message()));
  return File(std::move(impl));
}

void File::create_group(const std::string& name) {
  const std::string group = normalised(name);
  impl_->require_writing(group);
  if (contains(group)) return;
  // One by one: groups that the library makes on the way would note the time.
  if (const auto slash = group.rfind('/'); slash != std::string::npos) create_group(group.substr(0, slash));
  const Handle links = link_list();
  const Handle creation = creation_list(H5P_GROUP_CREATE);
  Handle made;
  if (links.valid() && creation.valid())
    made = Handle(H5Gcreate2(impl_->file.get(), group.c_str(), links.get(), creation.get(), H5P_DEFAULT),
                  H5Gclose);
  if (!made.valid() || !made.close()) impl_->fail(group, "cannot create the group: " + library_message());
}

void File::create_dataset(const std::string& name, DType dtype, const Shape& shape) {
  const std::string dataset = normalised(name);
  impl_->require_writing(dataset);
  if (const auto slash = dataset.rfind('/'); slash != std::string::npos)
    create_group(dataset.substr(0, slash));
  const Handle type = file_type(dtype);
  const Handle space = simple_space(shape);
  Handle made = new_dataset(impl_->file.get(), dataset, type, space);
  if (!made.valid())
    impl_->fail(dataset, fmt::format("cannot create a dataset of {} {}: {}", to_string(dtype),
                                     to_string(shape), library_message()));
  impl_->datasets.emplace(dataset, std::move(made));
  if (shape.numel() > 0) impl_->rows_missing[dataset] = shape.rank() == 0 ? 1 : shape[0];
}

void File::write(const std::string& name, ConstTensorView tensor) {
  const std::string dataset = normalised(name);
  create_dataset(dataset, tensor.dtype, tensor.shape);
  if (tensor.numel() == 0) return;
  const Handle type = file_type(tensor.dtype);
  if (!type.valid() ||
      H5Dwrite(impl_->dataset(dataset), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, tensor.data) < 0)
    impl_->fail(dataset, "cannot be written: " + library_message());
  impl_->rows_missing.erase(dataset);
}

void File::write_rows(const std::string& name, std::int64_t begin, ConstTensorView rows) {
  const std::string dataset = normalised(name);
  impl_->require_writing(dataset);
  const DatasetInfo to = info(dataset);
  bool fits = rows.dtype == to.dtype && to.shape.rank() > 0 && rows.shape.rank() == to.shape.rank() &&
              begin >= 0 && begin + rows.dim(0) <= to.shape[0];
  hsize_t start[Shape::kMaxRank] = {static_cast<hsize_t>(begin)};
  hsize_t count[Shape::kMaxRank] = {};
  for (int axis = 0; fits && axis < rows.shape.rank(); ++axis) {
    fits = axis == 0 || rows.shape[axis] == to.shape[axis];
    count[axis] = static_cast<hsize_t>(rows.shape[axis]);
  }
  if (!fits)
    impl_->fail(dataset, fmt::format("rows {} {} from row {} do not fit into {} {}", to_string(rows.dtype),
                                     to_string(rows.shape), begin, to_string(to.dtype), to_string(to.shape)));
  if (rows.numel() == 0) return;
  const Handle type = file_type(rows.dtype);
  const Handle memory = simple_space(rows.shape);
  const Handle space = simple_space(to.shape);
  if (!type.valid() || !memory.valid() || !space.valid() ||
      H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start, nullptr, count, nullptr) < 0 ||
      H5Dwrite(impl_->dataset(dataset), type.get(), memory.get(), space.get(), H5P_DEFAULT, rows.data) < 0)
    impl_->fail(dataset, "cannot be written: " + library_message());
  impl_->rows_missing[dataset] -= rows.dim(0);
  if (impl_->rows_missing[dataset] == 0) impl_->rows_missing.erase(dataset);
}

void File::write_strings(const std::string& name, std::span<const std::string> strings) {
  const std::string dataset = normalised(name);
  impl_->require_writing(dataset);
  if (const auto slash = dataset.rfind('/'); slash != std::string::npos)
    create_group(dataset.substr(0, slash));
  std::size_t width = 1;
  for (const std::string& text : strings) width = std::max(width, text.size());
  std::string padded;
  for (const std::string& text : strings) {
    padded += text;
    padded.append(width - text.size(), '\0');
  }
  const Handle type = string_type(width);
  const Handle space = simple_space({static_cast<std::int64_t>(strings.size())});
  Handle made = new_dataset(impl_->file.get(), dataset, type, space);
  if (!made.valid() ||
      (!strings.empty() &&
       H5Dwrite(made.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, padded.data()) < 0) ||
      !made.close())
    impl_->fail(dataset, "cannot write the list of strings: " + library_message());
}

namespace {

// Empty, or what failed.
std::string write_attribute(hid_t object, const std::string& name, const Handle& type, const void* value) {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle creation(H5Pcreate(H5P_ATTRIBUTE_CREATE), H5Pclose);
  Handle made;
  if (type.valid() && space.valid() && creation.valid() &&
      H5Pset_char_encoding(creation.get(), H5T_CSET_UTF8) >= 0)
    made = Handle(H5Acreate2(object, name.c_str(), type.get(), space.get(), creation.get(), H5P_DEFAULT),
                  H5Aclose);
  const bool ok = made.valid() && H5Awrite(made.get(), type.get(), value) >= 0 && made.close();
  return ok ? "" : fmt::format("cannot write attribute '{}': {}", name, library_message());
}

}  // namespace

void File::set_attribute(const std::string& object, const std::string& name, const std::string& value) {
  const std::string owner = normalised(object);
  impl_->require_writing(owner);
  const Handle opened = impl_->open_object(owner);
  const std::string failure = write_attribute(opened.get(), name, string_type(value.size()), value.c_str());
  if (!failure.empty()) impl_->fail(owner, failure);
}

void File::set_attribute(const std::string& object, const std::string& name, std::int64_t value) {
  const std::string owner = normalised(object);
  impl_->require_writing(owner);
  const Handle opened = impl_->open_object(owner);
  const std::string failure = write_attribute(opened.get(), name, file_type(DType::i64), &value);
  if (!failure.empty()) impl_->fail(owner, failure);
}

void File::set_attribute(const std::string& object, const std::string& name, double value) {
  const std::string owner = normalised(object);
  impl_->require_writing(owner);
  const Handle opened = impl_->open_object(owner);
  const std::string failure = write_attribute(opened.get(), name, file_type(DType::f64), &value);
  if (!failure.empty()) impl_->fail(owner, failure);
}

void File::commit() {
  Impl& impl = *impl_;
  impl.require_writing("");
  if (!impl.rows_missing.empty()) {
    const auto& [name, rows] = *impl.rows_missing.begin();
    impl.fail(name, fmt::format("{} rows were never written", rows));
  }
  for (auto& [name, dataset] : impl.datasets)
    if (!dataset.close()) impl.fail(name, "cannot be closed: " + library_message());
  impl.datasets.clear();
  if (H5Fflush(impl.file.get(), H5F_SCOPE_GLOBAL) < 0)
    impl.fail("", "cannot be flushed: " + library_message());
  if (!impl.file.close()) impl.fail("", "cannot be closed: " + library_message());
  if (const std::string failure = sync_path(impl.disk_path, O_RDONLY); !failure.empty())
    impl.fail("", failure);
  if (std::rename(impl.disk_path.c_str(), impl.path.c_str()) != 0)
    impl.fail("", fmt::format("cannot be renamed from '{}': {}", impl.disk_path, std::strerror(errno)));
  impl.committed = true;
  if (const std::string failure = sync_path(parent_of(impl.path), O_RDONLY | O_DIRECTORY); !failure.empty())
    impl.fail("", failure);
}

}  // namespace moecollab::h5
