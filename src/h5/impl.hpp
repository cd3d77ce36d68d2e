// What both halves of File share: owned library handles, the library's own words for a failure, element
// types.
#pragma once

#include <hdf5.h>

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "moecollab/core/tensor.hpp"
#include "moecollab/h5/file.hpp"

namespace moecollab::h5 {

// An id of the library with the function that closes it. `close` gives the return value to the caller; the
// destructor is for ways out on which an error is already reported.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle() = default;
  Handle(hid_t id, Close closer) : id_(id), close_(closer) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Handle() { close(); }

  bool valid() const { return id_ >= 0; }
  hid_t get() const { return id_; }
  bool close() {
    const hid_t id = std::exchange(id_, -1);
    return id < 0 || close_(id) >= 0;
  }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

struct File::Impl {
  std::string path;       // as it was given
  std::string disk_path;  // where the bytes are: `path`, or the temporary name
  bool writing = false;
  bool committed = false;
  std::string first_failure;  // of a written file; empty while all went well
  Handle file;
  std::map<std::string, Handle> datasets;            // opened once, closed with the file
  std::map<std::string, std::int64_t> rows_missing;  // of datasets being written row by row
  std::int64_t file_bytes = 0;                       // of a file being read

  // Remembers the failure, then throws: IoError while writing, DataError while reading.
  [[noreturn]] void fail(const std::string& object, const std::string& what);
  void require_writing(const std::string& object);
  hid_t dataset(const std::string& name);  // opened, and checked to be plain contiguous storage
  Handle open_object(const std::string& name);
  Handle open_attribute(const std::string& object, const std::string& name);
};

std::string normalised(const std::string& name);  // no leading or trailing '/'; "" is the root
std::string library_message();                    // innermost entry of the library's error stack
void silence_library();                           // errors are thrown, not printed
// True when every step of the path is a hard link that exists. `foreign_step` is set to the first step that
// is a soft, external or user-defined link.
bool reachable(hid_t file, const std::string& name, std::string& foreign_step);

Handle file_type(DType dtype);                 // little-endian type in files and, on such hosts, in memory
std::optional<DType> dtype_of(hid_t h5_type);  // none: not one of ours
Handle string_type(std::size_t size_bytes);    // fixed length, zero-padded, UTF-8

}  // namespace moecollab::h5
