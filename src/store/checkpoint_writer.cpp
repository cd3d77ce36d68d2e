#include "moecollab/store/checkpoint_writer.hpp"

#include <fmt/format.h>

#include <ctime>
#include <filesystem>

#include "moecollab/core/error.hpp"
#include "store/disk.hpp"
#include "store/manifest_text.hpp"

namespace moecollab::store {

namespace fs = std::filesystem;

CheckpointWriter::CheckpointWriter(const std::string& directory)
    : directory_(directory), work_(work_directory_of(directory)) {
  try {
    fs::remove_all(work_);
    fs::create_directories(work_);
  } catch (const fs::filesystem_error& error) {
    throw IoError(fmt::format("cannot make the directory '{}': {}", work_, error.code().message()));
  }
}

CheckpointWriter::~CheckpointWriter() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(work_, ignored);
}

FileEntry CheckpointWriter::add_file(const std::string& name, const std::string& bytes) {
  write_durably(work_ + "/" + name, bytes);
  return {name, static_cast<std::int64_t>(bytes.size()), digest_of(bytes)};
}

FileEntry CheckpointWriter::copy_file(const std::string& from_directory, const FileEntry& entry) {
  const std::string to = work_ + "/" + entry.name;
  try {
    copy_durably(from_directory + "/" + entry.name, to);
    if (digest_of_file(to) != entry.digest)
      throw CheckpointError(
          fmt::format("checkpoint '{}': file '{}' is damaged (its digest is not the manifest's)",
                      from_directory, entry.name));
  } catch (const DataError& error) {
    throw CheckpointError(fmt::format("checkpoint '{}': {}", from_directory, error.what()));
  }
  return entry;
}

void CheckpointWriter::commit(Manifest& manifest) {
  check_coverage(manifest);
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  manifest.created_utc = text;
  const std::string bytes = manifest_to_text(manifest);
  write_durably(work_ + "/manifest.json", bytes);
  replace_directory(work_, directory_);
  committed_ = true;
  manifest.digest = digest_of(bytes);
}

}  // namespace moecollab::store
