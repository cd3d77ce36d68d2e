// A growing file of raw values, opened only while it is written to or read, so that any number of them may
// exist.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace moecollab::data {

class PartFile {
 public:
  explicit PartFile(std::string path) : path_(std::move(path)) {}

  template <class T>
  void append(std::span<const T> values) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(values.data());
    buffer_.insert(buffer_.end(), bytes, bytes + values.size_bytes());
  }
  std::size_t buffered_bytes() const { return buffer_.size(); }
  std::int64_t size_bytes() const { return written_ + static_cast<std::int64_t>(buffer_.size()); }
  void flush();                                                       // throws IoError
  void read(std::int64_t offset, std::span<std::uint8_t> out) const;  // flushed bytes only; throws IoError

 private:
  std::string path_;
  std::vector<std::uint8_t> buffer_;
  std::int64_t written_ = 0;
};

}  // namespace moecollab::data
