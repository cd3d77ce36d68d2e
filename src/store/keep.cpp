// Which checkpoints of a run are whole, which one to go on from, and which to remove.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "moecollab/core/error.hpp"
#include "moecollab/store/checkpoint.hpp"
#include "store/disk.hpp"

namespace moecollab::store {

namespace fs = std::filesystem;

namespace {

constexpr const char* kPrefix = "step-";

struct Listed {
  std::int64_t step;
  std::string directory;
};

// "step-00000120" and nothing else; newest first.
std::vector<Listed> step_directories(const std::string& run_directory) {
  std::vector<Listed> found;
  std::error_code error;
  for (const auto& item : fs::directory_iterator(run_directory + "/checkpoints", error)) {
    const std::string name = item.path().filename().string();
    const std::string digits = name.starts_with(kPrefix) ? name.substr(5) : "";
    if (digits.size() < 8 || digits.size() > 18 ||
        digits.find_first_not_of("0123456789") != std::string::npos)
      continue;
    found.push_back({std::stoll(digits), item.path().string()});
  }
  std::sort(found.begin(), found.end(), [](const Listed& a, const Listed& b) { return a.step > b.step; });
  return found;
}

// Empty when the checkpoint is whole, else why it is not.
std::string fault(const Listed& listed, bool verify) {
  try {
    if (verify) verify_checkpoint(listed.directory);
    const Manifest manifest = read_manifest(listed.directory);
    if (manifest.state.step != listed.step)
      return fmt::format("its manifest is of step {}", manifest.state.step);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

void verify_checkpoint(const std::string& directory) {
  const Manifest manifest = read_manifest(directory);
  std::string damage;
  for (const FileEntry& file : manifest.files) {
    try {
      if (digest_of_file(directory + "/" + file.name) == file.digest) continue;
      const ReadOnlyFile bytes(directory + "/" + file.name);
      std::string tensors;
      for (const TensorEntry& tensor : manifest.tensors) {
        if (tensor.file != file.name) continue;
        std::string memory(static_cast<std::size_t>(tensor.size_bytes()), '\0');
        bytes.read(tensor.offset_bytes, memory.data(), tensor.size_bytes());
        if (digest_of(memory) != tensor.digest) tensors += (tensors.empty() ? "" : ", ") + tensor.dataset;
      }
      damage += fmt::format("; file '{}' is damaged: {}", file.name,
                            tensors.empty() ? "outside of its tensors" : tensors);
    } catch (const DataError& error) {
      damage += std::string("; ") + error.what();
    }
  }
  if (!damage.empty())
    throw CheckpointError(fmt::format("checkpoint '{}'{}: use another checkpoint", directory, damage));
}

FoundCheckpoint latest_checkpoint(const std::string& run_directory, bool verify) {
  FoundCheckpoint found;
  for (const Listed& listed : step_directories(run_directory)) {
    const std::string reason = fault(listed, verify);
    if (reason.empty()) {
      found.directory = listed.directory;
      found.step = listed.step;
      break;
    }
    found.skipped.push_back({listed.directory, reason});
  }
  return found;
}

void prune_checkpoints(const std::string& run_directory, std::int64_t keep) {
  if (keep < 1) throw UsageError(fmt::format("at least one checkpoint must be kept, got {}", keep));
  std::error_code error;
  std::int64_t whole = 0;
  for (const Listed& listed : step_directories(run_directory)) {
    if (!fault(listed, false).empty() || ++whole <= keep) continue;
    // First under a name that is never loaded, so that an interrupted removal leaves no half checkpoint.
    const std::string doomed = listed.directory + ".partial";
    fs::remove_all(doomed, error);
    fs::rename(listed.directory, doomed, error);
    if (error) throw IoError(fmt::format("cannot remove '{}': {}", listed.directory, error.message()));
  }
  for (const auto& item : fs::directory_iterator(run_directory + "/checkpoints", error)) {
    const std::string name = item.path().filename().string();
    if (name.starts_with(kPrefix) && (name.ends_with(".partial") || name.ends_with(".replaced")))
      fs::remove_all(item.path(), error);
  }
}

}  // namespace moecollab::store
