#include "part_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "moecollab/core/error.hpp"

namespace moecollab::data {
namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw IoError(fmt::format("{}: {}: {}", path, what, std::strerror(errno)));
}

}  // namespace

void PartFile::flush() {
  if (buffer_.empty()) return;
  const int fd = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) fail(path_, "could not be opened");
  std::size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t n = ::write(fd, buffer_.data() + done, buffer_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int cause = n == 0 ? ENOSPC : errno;
      ::close(fd);
      errno = cause;
      fail(path_, "write failed");
    }
    done += static_cast<std::size_t>(n);
  }
  if (::close(fd) != 0) fail(path_, "close failed");
  written_ += static_cast<std::int64_t>(buffer_.size());
  buffer_.clear();
}

void PartFile::read(std::int64_t offset, std::span<std::uint8_t> out) const {
  if (out.empty()) return;
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path_, "could not be opened");
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(fd, out.data() + done, out.size() - done,
                              static_cast<off_t>(offset) + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int cause = n == 0 ? EIO : errno;
      ::close(fd);
      errno = cause;
      fail(path_, "read failed");
    }
    done += static_cast<std::size_t>(n);
  }
  ::close(fd);
}

}  // namespace moecollab::data
