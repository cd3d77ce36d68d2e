#include "line_reader.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>

#include "moecollab/core/error.hpp"
#include "utf8.hpp"

namespace moecollab::prepare {
namespace {

constexpr std::size_t kBlockBytes = std::size_t{1} << 20;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

struct FreeHash {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

}  // namespace

struct LineReader::Impl {
  std::string path;
  std::int64_t max_line_bytes;
  int fd = -1;
  std::vector<char> block;
  std::size_t begin = 0;  // unread part of the block
  std::size_t end = 0;
  std::string carried;  // a line that began in an earlier block
  std::int64_t line_number = 0;
  std::int64_t bytes_read = 0;
  bool newline = false;
  std::unique_ptr<XXH3_state_t, FreeHash> hash{XXH3_createState()};

  ~Impl() {
    if (fd >= 0) ::close(fd);
  }
  bool refill();
  bool read_line(std::string_view& line);
};

LineReader::LineReader(LineReader&&) noexcept = default;
LineReader::~LineReader() = default;

LineReader::LineReader(const std::string& path, std::int64_t max_line_bytes)
    : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->max_line_bytes = max_line_bytes;
  impl_->block.resize(kBlockBytes);
  XXH3_128bits_reset(impl_->hash.get());
  impl_->fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (impl_->fd < 0) throw DataError(fmt::format("{}: could not be opened: {}", path, std::strerror(errno)));
  struct stat status {};
  if (::fstat(impl_->fd, &status) != 0 || !S_ISREG(status.st_mode))
    throw DataError(path + ": not a regular file (the input is read more than once, so a pipe will not do)");
  if (status.st_size == 0) throw DataError(path + ": the file is empty");
}

bool LineReader::Impl::refill() {
  while (true) {
    const ssize_t n = ::read(fd, block.data(), block.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw IoError(fmt::format("{}: read failed: {}", path, std::strerror(errno)));
    begin = 0;
    end = static_cast<std::size_t>(n);
    bytes_read += n;
    XXH3_128bits_update(hash.get(), block.data(), end);
    return n > 0;
  }
}

bool LineReader::Impl::read_line(std::string_view& line) {
  carried.clear();
  while (true) {
    if (begin == end && !refill()) {
      newline = false;
      line = carried;
      return !carried.empty();
    }
    const auto* start = block.data() + begin;
    const auto* found = static_cast<const char*>(std::memchr(start, '\n', end - begin));
    const std::size_t size = found != nullptr ? static_cast<std::size_t>(found - start) : end - begin;
    if (static_cast<std::int64_t>(carried.size() + size) > max_line_bytes)
      throw DataError(fmt::format(
          "{}:{}: the line is longer than {} bytes; raise --max-document-bytes if that is what it should be",
          path, line_number + 1, max_line_bytes));
    newline = found != nullptr;
    if (found != nullptr && carried.empty()) {
      line = {start, size};
    } else {
      carried.append(start, size);
      line = carried;
    }
    begin += size + (newline ? 1 : 0);
    if (newline) return true;
  }
}

bool LineReader::next(std::string_view& line) {
  if (!impl_->read_line(line)) return false;
  ++impl_->line_number;
  if (impl_->line_number == 1 && line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
  if (const std::size_t at = find_invalid_utf8(line); at != std::string_view::npos)
    throw DataError(fmt::format(
        "{}:{}: byte {} of the line (0x{:02x}) is not UTF-8; convert the file first, as in: iconv -f "
        "LATIN1 -t UTF-8",
        impl_->path, impl_->line_number, at + 1, static_cast<unsigned char>(line[at])));
  return true;
}

bool LineReader::ended_with_newline() const { return impl_->newline; }
std::int64_t LineReader::line_number() const { return impl_->line_number; }
std::int64_t LineReader::bytes_read() const { return impl_->bytes_read; }
std::string LineReader::xxh3_128() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(impl_->hash.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace moecollab::prepare
