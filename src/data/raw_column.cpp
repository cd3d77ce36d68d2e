#include "raw_column.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "moecollab/core/error.hpp"

namespace moecollab::data {

ReadFile::ReadFile(std::string path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) throw DataError(fmt::format("{}: could not be opened: {}", path_, std::strerror(errno)));
}

ReadFile::~ReadFile() { ::close(fd_); }

void ReadFile::read(std::int64_t offset, std::span<std::uint8_t> out, const std::string& dataset) const {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(fd_, out.data() + done, out.size() - done,
                              static_cast<off_t>(offset) + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw IoError(fmt::format("{}: reading {} failed: {}", path_, dataset, std::strerror(errno)));
    if (n == 0)
      throw DataError(fmt::format("{}: the file ends at byte {}, inside {}: it was cut short", path_,
                                  offset + static_cast<std::int64_t>(done), dataset));
    done += static_cast<std::size_t>(n);
  }
}

void RawColumn::read_bytes(std::int64_t begin, std::int64_t count, std::span<std::uint8_t> out) const {
  if (count == 0) return;
  if (begin < 0 || begin > rows - count)
    throw DataError(fmt::format("{}: rows [{}, {}) of {} were asked for, it has {}", file->path(), begin,
                                begin + count, name, rows));
  file->read(offset_bytes + begin * moecollab::size_bytes(dtype), out, name);
}

}  // namespace moecollab::data
