// Batches from a dataset. What sample i is depends on (seed, i) alone, never on rank count or history, so
// resuming needs the position only and rank r of P takes rows [B*r/P, B*(r+1)/P) of the same batch.
#pragma once

#include <cstdint>
#include <vector>

#include "moecollab/core/tensor.hpp"
#include "moecollab/data/dataset.hpp"

namespace moecollab::data {

enum class Task : std::uint8_t { lm, classification };

// Rows of a batch; shapes as in nn/batch.hpp. A row is padded on the right with eos.
struct Batch {
  Tensor tokens;    // [B,S] i32
  Tensor targets;   // lm: [B,S] i32 next token, -1 = none; classification: [B] i32 labels
  Tensor lengths;   // [B] i32 valid tokens
  Tensor segments;  // [B,S] i32 (row of the whole batch) * S + (run of one document in the row), -1 = padding
  Tensor domains;   // [B,S] i32 index into Dataset::domains, -1 = padding
  std::vector<std::int64_t> target_bytes;  // [B] bytes of text behind the targets of each row; eos has none
  std::int64_t num_targets = 0;            // that are not -1
  std::int64_t num_tokens = 0;             // that are not padding
};

struct SamplerOptions {
  std::int64_t seq_len = 256;  // S
  std::uint64_t seed = 1;
  Split split = Split::train;
  Task task = Task::lm;
  std::vector<double> domain_weights;  // one per domain, >= 0; empty: every window or document once per epoch
};

// lm: a sample is a window of S+1 neighbouring tokens of one domain, whose last token follows its first one
// in a ring, so a domain of N tokens has floor(N/S) windows per epoch, cut at another offset in each. A
// domain of at most S tokens is one padded window. Without weights an epoch is a keyed permutation of all
// windows; with weights the domain of each sample is drawn, then the window's place in it. classification: a
// sample is one document, cut to S tokens. Same order rules.
class Sampler {
 public:
  // `dataset` must outlive the sampler. Throws UsageError: S < 1, weights that do not fit; DataError: nothing
  // to read, or classification without labels.
  Sampler(const Dataset& dataset, const SamplerOptions& options);

  std::int64_t samples_per_epoch() const;  // windows or documents of one epoch without weights
  // Rows [begin, end) of the batch whose row 0 is sample `position`; begin == end gives a batch of no rows.
  Batch batch(std::int64_t position, std::int64_t begin, std::int64_t end) const;

 private:
  struct Sample {
    std::int32_t domain;
    std::int64_t start;  // lm: token of the domain; classification: document of the split
  };
  Sample sample(std::int64_t index) const;
  std::int64_t extent(std::int32_t domain) const;

  const Dataset* dataset_;
  SamplerOptions options_;
  std::vector<std::int64_t> first_window_;  // [domains + 1] windows or documents before each domain
  std::vector<double> cumulative_weights_;  // [domains], the last is 1; empty without weights
};

// The validation side, domain by domain in a fixed order.
// lm: windows of S targets that do not overlap, so every target is counted once (the first token of a domain
// is no target); the last one may be short. At most `max_sequences` of a domain, evenly spread over it.
class EvalSet {
 public:
  EvalSet(const Dataset& dataset, std::int64_t seq_len, std::int64_t max_sequences, Task task = Task::lm,
          Split split = Split::validation);

  std::int64_t num_domains() const;
  std::int64_t num_sequences(std::int32_t domain) const;
  // Sequences [begin, end) of a domain; segments count from row 0 of the domain.
  Batch batch(std::int32_t domain, std::int64_t begin, std::int64_t end) const;

 private:
  std::int64_t available(std::int32_t domain) const;

  const Dataset* dataset_;
  std::int64_t seq_len_;
  std::int64_t max_sequences_;
  Task task_;
  Split split_;
};

}  // namespace moecollab::data
