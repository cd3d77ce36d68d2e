// `metrics.jsonl` of a run: one JSON object per line, appended and flushed, so that a crash costs at most the
// line being written.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "moecollab/report/record.hpp"

namespace moecollab::report {

class MetricsWriter {
 public:
  // Opens `path` to append, creating it. A run that goes on from a checkpoint at `resumed_step` (0: from the
  // start) first cuts the file before the first line that is torn or whose "step" is greater, so that every
  // step stands there once. Throws IoError.
  MetricsWriter(const std::string& path, std::int64_t resumed_step);

  // Writes {"step": step, ...record} and flushes. Throws IoError (disk full).
  void write(std::int64_t step, const Record& record);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace moecollab::report
