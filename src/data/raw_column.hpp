// One contiguous dataset of a file, read with pread at its offset: no library lock, any number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "moecollab/core/tensor.hpp"

namespace moecollab::data {

class ReadFile {
 public:
  explicit ReadFile(std::string path);  // throws DataError when it cannot be opened
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;
  ~ReadFile();
  const std::string& path() const { return path_; }
  // Throws IoError, or DataError past the end of the file.
  void read(std::int64_t offset, std::span<std::uint8_t> out, const std::string& dataset) const;

 private:
  std::string path_;
  int fd_ = -1;
};

struct RawColumn {
  std::shared_ptr<const ReadFile> file;
  std::string name;  // of the dataset
  DType dtype = DType::u8;
  std::int64_t rows = 0;
  std::int64_t offset_bytes = 0;

  // Rows [begin, begin + out.size()); the element type is the dataset's. Throws DataError outside of it.
  template <class T>
  void read(std::int64_t begin, std::span<T> out) const {
    read_bytes(begin, static_cast<std::int64_t>(out.size()),
               {reinterpret_cast<std::uint8_t*>(out.data()), out.size_bytes()});
  }

 private:
  void read_bytes(std::int64_t begin, std::int64_t count, std::span<std::uint8_t> out) const;
};

}  // namespace moecollab::data
