// Bytes to and from disk, so that what was acknowledged survives a power failure.
#pragma once

#include <cstdint>
#include <string>

namespace moecollab::store {

std::string read_whole(const std::string& path);  // throws DataError

// Under a temporary name, synced, renamed, directory synced. Throws IoError and leaves no temporary file.
void write_durably(const std::string& path, const std::string& bytes);

// Bytes of `from` to the new file `to`, durable like `write_durably`. Throws IoError (DataError when `from`
// cannot be read).
void copy_durably(const std::string& from, const std::string& to);

void sync_directory(const std::string& path);  // throws IoError

// Puts `work` in the place of `directory` in one step when the file system can exchange names, and removes
// what stood there. Throws IoError.
void replace_directory(const std::string& work, const std::string& directory);

// A file open for reading at offsets.
class ReadOnlyFile {
 public:
  explicit ReadOnlyFile(const std::string& path);  // throws DataError
  ~ReadOnlyFile();
  ReadOnlyFile(ReadOnlyFile&& other) noexcept;
  ReadOnlyFile(const ReadOnlyFile&) = delete;
  ReadOnlyFile& operator=(const ReadOnlyFile&) = delete;
  void read(std::int64_t offset_bytes, void* to, std::int64_t size_bytes) const;  // throws DataError

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace moecollab::store
