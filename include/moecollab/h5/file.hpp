// One HDF5 file, serial, with every return value of the library checked.
//
// Written files are published whole or not at all: they grow under `path` + ".tmp", and `commit()` closes,
// syncs and renames them. Datasets are contiguous, so their bytes can be read with pread at the offset that
// `info` gives. Only hard links are followed, and only contiguous storage inside the file itself is read:
// links to other files, external storage and virtual datasets are refused, as is a dataset that claims more
// bytes than the file has.
//
// Names are paths from the root, separated by '/': "value/layers.0.gate_proj.weight". The empty name or "/"
// is the root. A File is used by one thread at a time; tensors are in host memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "moecollab/core/tensor.hpp"

namespace moecollab::h5 {

struct DatasetInfo {
  DType dtype = DType::f32;
  Shape shape;
  std::int64_t offset_bytes = -1;  // of the first element in the file; -1 when the dataset has no elements
};

enum class AttributeType : std::uint8_t { string, i64, f64, other };

class File {
 public:
  struct Impl;  // known to this room only

  // A file to be written. An older file at `path` stays readable until `commit` replaces it. Throws IoError.
  static File create_new(const std::string& path);
  // A file to be read. Throws DataError when it is missing, truncated or not HDF5.
  static File open_read(const std::string& path);

  File(File&&) noexcept;
  File& operator=(File&&) noexcept;
  ~File();  // a written file that was not committed is removed

  const std::string& path() const;  // as it was given

  // Writing. Each throws IoError naming file and dataset; after the first failure all others, and `commit`,
  // fail as well. Groups on the way are made as needed.
  void create_group(const std::string& name);
  void create_dataset(const std::string& name, DType dtype,
                      const Shape& shape);                      // elements not written: zero
  void write(const std::string& name, ConstTensorView tensor);  // creates the dataset
  // Rows [begin, begin + rows.dim(0)) of a dataset made by `create_dataset`.
  void write_rows(const std::string& name, std::int64_t begin, ConstTensorView rows);
  void write_strings(const std::string& name, std::span<const std::string> strings);  // UTF-8, 1-D
  // `object` is a group or dataset that exists. An attribute that exists is an error.
  void set_attribute(const std::string& object, const std::string& name, const std::string& value);  // UTF-8
  void set_attribute(const std::string& object, const std::string& name, std::int64_t value);
  void set_attribute(const std::string& object, const std::string& name, double value);
  // Offset of a dataset in the file; fixed from its creation on.
  DatasetInfo info(const std::string& name) const;
  // Flushes, closes, syncs the file, renames it to `path` and syncs the directory: on return the file
  // survives a power failure. Throws IoError when this or any write before it failed; the older file at
  // `path` is then untouched.
  void commit();

  // Reading. Each throws DataError naming file and object.
  bool contains(const std::string& name) const;                  // a group or dataset behind hard links
  std::vector<std::string> list(const std::string& name) const;  // names in a group, sorted
  bool is_group(const std::string& name) const;
  Tensor read(const std::string& name) const;
  void read(const std::string& name, TensorView out) const;  // shape and type must be the dataset's
  // Rows [begin, begin + out.dim(0)).
  void read_rows(const std::string& name, std::int64_t begin, TensorView out) const;
  std::vector<std::string> read_strings(const std::string& name) const;
  std::vector<std::string> list_attributes(const std::string& object) const;  // sorted
  AttributeType attribute_type(const std::string& object, const std::string& name) const;
  bool has_attribute(const std::string& object, const std::string& name) const;
  std::string attribute_string(const std::string& object, const std::string& name) const;
  std::int64_t attribute_i64(const std::string& object, const std::string& name) const;
  double attribute_f64(const std::string& object, const std::string& name) const;

 private:
  explicit File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moecollab::h5
