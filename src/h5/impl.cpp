#include "h5/impl.hpp"

#include <fmt/format.h>

#include <bit>
#include <vector>

#include "moecollab/core/error.hpp"

namespace moecollab::h5 {

static_assert(std::endian::native == std::endian::little,
              "files are little-endian and are read without swapping");

std::string normalised(const std::string& name) {
  std::string clean;
  for (const char c : name)
    if (c != '/' || (!clean.empty() && clean.back() != '/')) clean += c;
  if (!clean.empty() && clean.back() == '/') clean.pop_back();
  return clean;
}

void silence_library() {
  // After a write that failed (disk full), the library would flush what it kept once more at exit, and crash.
  H5dont_atexit();
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  // Reading a file never loads code: no filter plugins, whatever the environment says.
  H5PLset_loading_state(0);
}

std::string library_message() {
  std::string message;
  const auto innermost = [](unsigned n, const H5E_error2_t* entry, void* out) -> herr_t {
    if (n == 0 && entry->desc != nullptr) *static_cast<std::string*>(out) = entry->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, &message);
  H5Eclear2(H5E_DEFAULT);
  return message.empty() ? "no reason given by the HDF5 library" : message;
}

void File::Impl::fail(const std::string& object, const std::string& what) {
  std::string message = object.empty() ? fmt::format("HDF5 file '{}': {}", path, what)
                                       : fmt::format("HDF5 file '{}', '{}': {}", path, object, what);
  if (!writing) throw DataError(message);
  if (first_failure.empty()) first_failure = message;
  throw IoError(message);
}

void File::Impl::require_writing(const std::string& object) {
  if (!writing) throw InternalError(fmt::format("HDF5 file '{}' is open for reading, not for writing", path));
  if (committed) throw InternalError(fmt::format("HDF5 file '{}' is already committed", path));
  if (!first_failure.empty()) fail(object, "not written, because an earlier write failed: " + first_failure);
}

bool reachable(hid_t file, const std::string& name, std::string& foreign_step) {
  for (std::size_t end = 0; end != std::string::npos && !name.empty();) {
    end = name.find('/', end == 0 ? 0 : end + 1);
    const std::string step = name.substr(0, end);
    if (H5Lexists(file, step.c_str(), H5P_DEFAULT) <= 0) {
      H5Eclear2(H5E_DEFAULT);
      return false;
    }
    H5L_info_t info;
    if (H5Lget_info(file, step.c_str(), &info, H5P_DEFAULT) < 0 || info.type != H5L_TYPE_HARD) {
      foreign_step = step;
      return false;
    }
  }
  return true;
}

Handle File::Impl::open_object(const std::string& name) {
  if (!file.valid()) throw InternalError(fmt::format("HDF5 file '{}' is closed", path));
  std::string foreign;
  if (!reachable(file.get(), name, foreign)) {
    if (!foreign.empty())
      fail(foreign, "is a soft, external or user-defined link; only hard links are followed");
    fail(name, "does not exist");
  }
  Handle object(H5Oopen(file.get(), name.empty() ? "/" : name.c_str(), H5P_DEFAULT), H5Oclose);
  if (!object.valid()) fail(name, "cannot be opened: " + library_message());
  return object;
}

hid_t File::Impl::dataset(const std::string& name) {
  if (const auto known = datasets.find(name); known != datasets.end()) return known->second.get();
  if (name.empty()) fail(name, "the root is not a dataset");
  Handle object = open_object(name);
  if (H5Iget_type(object.get()) != H5I_DATASET) fail(name, "is not a dataset");
  object.close();
  Handle opened(H5Dopen2(file.get(), name.c_str(), H5P_DEFAULT), H5Dclose);
  if (!opened.valid()) fail(name, "cannot be opened: " + library_message());
  const Handle plist(H5Dget_create_plist(opened.get()), H5Pclose);
  if (!plist.valid() || H5Pget_layout(plist.get()) != H5D_CONTIGUOUS ||
      H5Pget_external_count(plist.get()) != 0)
    fail(name,
         "is not stored contiguously inside the file (chunked, compact, virtual and external storage are "
         "not read)");
  return datasets.emplace(name, std::move(opened)).first->second.get();
}

Handle File::Impl::open_attribute(const std::string& object, const std::string& name) {
  const Handle owner = open_object(object);
  Handle attribute(H5Aopen(owner.get(), name.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attribute.valid()) {
    library_message();
    fail(object, fmt::format("has no attribute '{}'", name));
  }
  return attribute;
}

// bf16 is HDF5's own description of any float: 16 bits, sign in bit 15, 8 exponent bits from bit 7, 7
// mantissa bits, bias 127. Readers that know no bf16 (h5py) convert it to f32.
Handle file_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return {H5Tcopy(H5T_IEEE_F32LE), H5Tclose};
    case DType::f64:
      return {H5Tcopy(H5T_IEEE_F64LE), H5Tclose};
    case DType::i32:
      return {H5Tcopy(H5T_STD_I32LE), H5Tclose};
    case DType::i64:
      return {H5Tcopy(H5T_STD_I64LE), H5Tclose};
    case DType::u8:
      return {H5Tcopy(H5T_STD_U8LE), H5Tclose};
    case DType::u16:
      return {H5Tcopy(H5T_STD_U16LE), H5Tclose};
    case DType::bf16: {
      Handle type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
      const bool ok = type.valid() && H5Tset_fields(type.get(), 15, 7, 8, 0, 7) >= 0 &&
                      H5Tset_precision(type.get(), 16) >= 0 && H5Tset_size(type.get(), 2) >= 0 &&
                      H5Tset_ebias(type.get(), 127) >= 0;
      if (!ok) return {};
      return type;
    }
  }
  return {};
}

std::optional<DType> dtype_of(hid_t h5_type) {
  for (const DType dtype :
       {DType::f32, DType::bf16, DType::f64, DType::i32, DType::i64, DType::u8, DType::u16}) {
    const Handle ours = file_type(dtype);
    if (ours.valid() && H5Tequal(h5_type, ours.get()) > 0) return dtype;
  }
  return std::nullopt;
}

Handle string_type(std::size_t size_bytes) {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  const bool ok = type.valid() && H5Tset_size(type.get(), size_bytes > 0 ? size_bytes : 1) >= 0 &&
                  H5Tset_strpad(type.get(), H5T_STR_NULLPAD) >= 0 &&
                  H5Tset_cset(type.get(), H5T_CSET_UTF8) >= 0;
  if (!ok) return {};
  return type;
}

}  // namespace moecollab::h5
