#include "moecollab/report/metrics_writer.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "moecollab/core/error.hpp"

namespace moecollab::report {

namespace {

// Bytes of whole, readable lines from the start of the file with a step of at most `last_step`.
std::int64_t kept_bytes(const std::string& path, std::int64_t last_step) {
  std::ifstream file(path, std::ios::binary);
  std::int64_t kept = 0;
  for (std::string line; std::getline(file, line);) {
    if (file.eof()) break;  // no line break: torn
    const nlohmann::json parsed = nlohmann::json::parse(line, nullptr, false);
    if (!parsed.is_object()) break;
    const auto step = parsed.find("step");
    if (step == parsed.end() || !step->is_number_integer() || step->get<std::int64_t>() > last_step) break;
    kept += static_cast<std::int64_t>(line.size()) + 1;
  }
  return kept;
}

}  // namespace

MetricsWriter::MetricsWriter(const std::string& path, std::int64_t resumed_step) : path_(path) {
  if (std::filesystem::is_regular_file(path)) {
    const std::int64_t kept = kept_bytes(path, resumed_step);
    if (::truncate(path.c_str(), kept) != 0)
      throw IoError(fmt::format("cannot cut {} at byte {}: {}", path, kept, std::strerror(errno)));
  }
  file_.reset(std::fopen(path.c_str(), "ab"));
  if (file_ == nullptr) throw IoError(fmt::format("cannot open {}: {}", path, std::strerror(errno)));
}

void MetricsWriter::write(std::int64_t step, const Record& record) {
  std::string line = fmt::format("{{\"step\": {}", step);
  const std::string rest = record.to_json();
  line += rest == "{}" ? "}\n" : ", " + rest.substr(1) + '\n';
  if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() || std::fflush(file_.get()) != 0)
    throw IoError(fmt::format("cannot write to {}: {}", path_, std::strerror(errno)));
}

}  // namespace moecollab::report
