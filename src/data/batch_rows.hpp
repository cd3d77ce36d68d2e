// Fills the rows of a batch from a dataset.
#pragma once

#include <cstdint>
#include <vector>

#include "moecollab/data/sampler.hpp"

namespace moecollab::data {

class BatchRows {
 public:
  // Rows [begin, end) of a batch. Throws UsageError when end * S does not fit a segment number.
  BatchRows(const Dataset& dataset, Split split, Task task, std::int64_t seq_len, std::int64_t begin,
            std::int64_t end);

  // Up to S+1 tokens of `domain` from its token `start` on; past its end it goes on at its first token if
  // `ring`, else the row is short. A ring of at most S tokens is read once, from its first token.
  void add_window(std::int32_t domain, std::int64_t start, bool ring);
  void add_document(std::int32_t domain, std::int64_t document);

  Batch take() { return std::move(batch_); }

 private:
  void append_runs(std::int64_t token, std::int64_t count);  // reads `count` neighbouring tokens
  void finish_row(std::int32_t domain, std::int64_t length);

  const Dataset& dataset_;
  Split split_;
  Task task_;
  std::int64_t seq_len_;
  std::int64_t begin_;
  std::int64_t row_ = 0;  // in this batch
  std::int32_t next_run_ = 0;
  std::vector<std::int32_t> tokens_;  // of the row being read
  std::vector<std::int32_t> runs_;
  std::vector<std::int64_t> ends_;
  Batch batch_;
};

}  // namespace moecollab::data
