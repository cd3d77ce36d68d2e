#include "store/disk.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "moecollab/core/error.hpp"

namespace moecollab::store {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void io_error(const std::string& what, const std::string& path) {
  throw IoError(fmt::format("cannot {} '{}': {}", what, path, std::strerror(errno)));
}

std::string parent_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

// A file that grows under a temporary name; gone unless published.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path) : path_(path), temporary_(path + ".tmp") {
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd_ < 0) io_error("create", temporary_);
  }
  ~TemporaryFile() {
    if (fd_ >= 0) ::close(fd_);
    if (!published_) ::unlink(temporary_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void write(const char* data, std::size_t size) {
    while (size > 0) {
      const ssize_t done = ::write(fd_, data, size);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) io_error("write", temporary_);
      data += done;
      size -= static_cast<std::size_t>(done);
    }
  }
  void publish() {
    if (::fsync(fd_) != 0) io_error("sync", temporary_);
    if (::close(std::exchange(fd_, -1)) != 0) io_error("close", temporary_);
    if (std::rename(temporary_.c_str(), path_.c_str()) != 0) io_error("rename", temporary_);
    published_ = true;
    sync_directory(parent_of(path_));
  }

 private:
  std::string path_, temporary_;
  int fd_ = -1;
  bool published_ = false;
};

}  // namespace

std::string read_whole(const std::string& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  if (error) throw DataError(fmt::format("cannot read '{}': {}", path, error.message()));
  std::string bytes(size, '\0');
  ReadOnlyFile(path).read(0, bytes.data(), static_cast<std::int64_t>(size));
  return bytes;
}

void write_durably(const std::string& path, const std::string& bytes) {
  TemporaryFile file(path);
  file.write(bytes.data(), bytes.size());
  file.publish();
}

void copy_durably(const std::string& from, const std::string& to) {
  std::error_code error;
  auto left = static_cast<std::int64_t>(fs::file_size(from, error));
  if (error) throw DataError(fmt::format("cannot read '{}': {}", from, error.message()));
  const ReadOnlyFile source(from);
  TemporaryFile file(to);
  std::vector<char> buffer(std::size_t{1} << 20);
  for (std::int64_t offset = 0; left > 0;) {
    const auto piece = std::min(left, static_cast<std::int64_t>(buffer.size()));
    source.read(offset, buffer.data(), piece);
    file.write(buffer.data(), static_cast<std::size_t>(piece));
    offset += piece;
    left -= piece;
  }
  file.publish();
}

void sync_directory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) io_error("open", path);
  const bool synced = ::fsync(fd) == 0;
  const int error = errno;
  ::close(fd);
  errno = error;
  if (!synced) io_error("sync", path);
}

void replace_directory(const std::string& work, const std::string& directory) {
  const std::string old = directory + ".replaced";
  std::error_code ignored;
  if (std::rename(work.c_str(), directory.c_str()) == 0) {
    sync_directory(parent_of(directory));
    return;
  }
  if (errno != ENOTEMPTY && errno != EEXIST) io_error("rename", work);
  if (::renameat2(AT_FDCWD, work.c_str(), AT_FDCWD, directory.c_str(), RENAME_EXCHANGE) == 0) {
    sync_directory(parent_of(directory));
    fs::remove_all(work, ignored);
    return;
  }
  // A file system that cannot exchange two names: between the two renames this step has no checkpoint under
  // its own name, and a reader falls back to the step before.
  fs::remove_all(old, ignored);
  if (std::rename(directory.c_str(), old.c_str()) != 0) io_error("rename", directory);
  if (std::rename(work.c_str(), directory.c_str()) != 0) io_error("rename", work);
  sync_directory(parent_of(directory));
  fs::remove_all(old, ignored);
}

ReadOnlyFile::ReadOnlyFile(const std::string& path)
    : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (fd_ < 0) throw DataError(fmt::format("cannot read '{}': {}", path, std::strerror(errno)));
}
ReadOnlyFile::~ReadOnlyFile() {
  if (fd_ >= 0) ::close(fd_);
}
ReadOnlyFile::ReadOnlyFile(ReadOnlyFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

void ReadOnlyFile::read(std::int64_t offset_bytes, void* to, std::int64_t size_bytes) const {
  auto* bytes = static_cast<char*>(to);
  while (size_bytes > 0) {
    const ssize_t got = ::pread(fd_, bytes, static_cast<std::size_t>(size_bytes), offset_bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw DataError(fmt::format("cannot read '{}': {}", path_, std::strerror(errno)));
    if (got == 0)
      throw DataError(
          fmt::format("'{}' ends at byte {}, {} more were expected", path_, offset_bytes, size_bytes));
    bytes += got;
    offset_bytes += got;
    size_bytes -= got;
  }
}

}  // namespace moecollab::store
