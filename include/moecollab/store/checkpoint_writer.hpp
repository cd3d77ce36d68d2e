// The commit that makes a directory of files a checkpoint. Saving a run and assembling contributions both end
// here.
#pragma once

#include <string>

#include "moecollab/store/manifest.hpp"

namespace moecollab::store {

// Builds a checkpoint in `directory` + ".partial" and moves it into place at the commit. Destroyed before
// that, it removes what it made.
class CheckpointWriter {
 public:
  explicit CheckpointWriter(const std::string& directory);  // removes a stale partial one; throws IoError
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  static std::string work_directory_of(const std::string& directory) { return directory + ".partial"; }
  const std::string& work_directory() const { return work_; }

  FileEntry add_file(const std::string& name, const std::string& bytes);
  // A file of another checkpoint, byte for byte. Throws CheckpointError when the bytes do not have the digest
  // that `entry` states.
  FileEntry copy_file(const std::string& from_directory, const FileEntry& entry);

  // Checks coverage, writes manifest.json, moves the directory into place (a checkpoint that stood there is
  // replaced) and sets `manifest.created_utc` and `manifest.digest`.
  void commit(Manifest& manifest);

 private:
  std::string directory_, work_;
  bool committed_ = false;
};

}  // namespace moecollab::store
