#include "expand.hpp"

#include <fmt/format.h>
#include <glob.h>

#include <algorithm>
#include <filesystem>

#include "moecollab/core/error.hpp"

namespace moecollab::prepare {
namespace {

Format format_of(const std::filesystem::path& path) {
  const std::string ending = path.extension().string();
  if (ending == ".jsonl" || ending == ".ndjson" || ending == ".json") return Format::jsonl;
  return ending == ".tsv" ? Format::tsv : Format::text;
}

std::vector<std::string> paths_of(const std::string& pattern) {
  if (std::filesystem::is_directory(pattern)) {
    std::vector<std::string> paths;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(pattern))
      if (entry.is_regular_file()) paths.push_back(entry.path().string());
    std::ranges::sort(paths);
    if (paths.empty()) throw DataError(pattern + ": the folder holds no file");
    return paths;
  }
  if (std::filesystem::exists(pattern) || pattern.find_first_of("*?[") == std::string::npos) return {pattern};
  glob_t found{};
  std::vector<std::string> paths;
  if (::glob(pattern.c_str(), 0, nullptr, &found) == 0)
    paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  if (paths.empty()) throw DataError(pattern + ": no file matches");
  return paths;
}

}  // namespace

std::vector<InputFile> expand_input(const std::string& argument, bool domain_from_records) {
  std::string path = argument;
  std::string domain;
  if (const std::size_t equals = argument.find('='); equals != std::string::npos) {
    domain = argument.substr(0, equals);
    path = argument.substr(equals + 1);
  }
  if (path.empty() || (domain.empty() && !domain_from_records))
    throw UsageError(fmt::format(
        "--input {}: expected domain=path or domain=path:format, as in --input novels=books.txt", argument));
  std::optional<Format> format;
  if (const std::size_t colon = path.rfind(':'); colon != std::string::npos) {
    format = format_from_string(path.substr(colon + 1));
    if (format.has_value()) {
      path.resize(colon);
    } else if (!std::filesystem::exists(path) && path.find('/', colon) == std::string::npos) {
      throw UsageError(fmt::format("--input {}: unknown format \"{}\"; there are text, file, jsonl and tsv",
                                   argument, path.substr(colon + 1)));
    }
  }
  std::vector<InputFile> files;
  for (const std::string& each : paths_of(path))
    files.push_back({domain, each, format.value_or(format_of(each))});
  return files;
}

}  // namespace moecollab::prepare
