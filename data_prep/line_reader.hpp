// The lines of a text file, with their numbers, in a fixed amount of memory; hashes the file on the way.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace moecollab::prepare {

class LineReader {
 public:
  // Throws DataError: missing, a folder, unreadable, or empty.
  LineReader(const std::string& path, std::int64_t max_line_bytes);
  LineReader(LineReader&&) noexcept;
  ~LineReader();

  // The next line without its '\n', valid until the next call; false at the end of the file. A byte order
  // mark at the start of the file is skipped. Throws DataError naming file and line: not UTF-8, or longer
  // than allowed.
  bool next(std::string_view& line);
  bool ended_with_newline() const;   // the line last returned
  std::int64_t line_number() const;  // of the line last returned, from 1
  std::int64_t bytes_read() const;
  std::string xxh3_128() const;  // of all bytes read so far

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moecollab::prepare
