#include "batch_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "moecollab/core/error.hpp"

namespace moecollab::data {

BatchRows::BatchRows(const Dataset& dataset, Split split, Task task, std::int64_t seq_len, std::int64_t begin,
                     std::int64_t end)
    : dataset_(dataset), split_(split), task_(task), seq_len_(seq_len), begin_(begin) {
  if (begin < 0 || end < begin)
    throw InternalError(fmt::format("rows [{}, {}) of a batch were asked for", begin, end));
  if (end > std::numeric_limits<std::int32_t>::max() / seq_len)
    throw UsageError(
        fmt::format("a batch of {} sequences of {} tokens has more than 2^31 tokens: use more micro-batches",
                    end, seq_len));
  const std::int64_t rows = end - begin;
  const Shape grid{rows, seq_len};
  batch_.tokens = Tensor(DType::i32, grid);
  batch_.targets = Tensor(DType::i32, task == Task::lm ? grid : Shape{rows});
  batch_.lengths = Tensor(DType::i32, Shape{rows});
  batch_.segments = Tensor(DType::i32, grid);
  batch_.domains = Tensor(DType::i32, grid);
  batch_.target_bytes.assign(static_cast<std::size_t>(rows), 0);
}

void BatchRows::append_runs(std::int64_t token, std::int64_t count) {
  if (count == 0) return;
  const std::size_t at = tokens_.size();
  tokens_.resize(at + static_cast<std::size_t>(count));
  runs_.resize(tokens_.size());
  dataset_.read_tokens(split_, token, std::span(tokens_).subspan(at));
  const std::int64_t first = dataset_.document_of(split_, token);
  // A document has at least one token, so `count` ends are enough.
  ends_.resize(static_cast<std::size_t>(std::min(count, dataset_.num_documents(split_) - first)));
  dataset_.read_document_ends(split_, first, ends_);
  std::size_t document = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (token + i == ends_[document]) {
      ++document;
      ++next_run_;
    }
    runs_[at + static_cast<std::size_t>(i)] = next_run_;
  }
  ++next_run_;
}

void BatchRows::add_window(std::int32_t domain, std::int64_t start, bool ring) {
  const Range range = dataset_.domain_tokens(split_, domain);
  const std::int64_t count = std::min(seq_len_ + 1, ring ? range.size() : range.size() - start);
  if (ring && range.size() <= seq_len_) start = 0;
  const std::int64_t before_end = std::min(count, range.size() - start);
  append_runs(range.begin + start, before_end);
  append_runs(range.begin, count - before_end);

  const std::int64_t length = count - 1;
  auto* targets = batch_.targets.view().as<std::int32_t>() + row_ * seq_len_;
  std::fill_n(targets, seq_len_, -1);
  std::copy_n(tokens_.begin() + 1, length, targets);
  const auto token_bytes = dataset_.tokenizer().token_bytes();
  for (std::int64_t i = 0; i < length; ++i)
    batch_.target_bytes[static_cast<std::size_t>(row_)] += token_bytes[static_cast<std::size_t>(targets[i])];
  batch_.num_targets += length;
  finish_row(domain, length);
}

void BatchRows::add_document(std::int32_t domain, std::int64_t document) {
  const Range range = dataset_.document_tokens(split_, document);
  const std::int64_t length = std::min(seq_len_, range.size());
  append_runs(range.begin, length);
  batch_.targets.view().as<std::int32_t>()[row_] = dataset_.document_label(split_, document);
  ++batch_.num_targets;
  finish_row(domain, length);
}

void BatchRows::finish_row(std::int32_t domain, std::int64_t length) {
  const std::int64_t at = row_ * seq_len_;
  auto* tokens = batch_.tokens.view().as<std::int32_t>() + at;
  auto* segments = batch_.segments.view().as<std::int32_t>() + at;
  auto* domains = batch_.domains.view().as<std::int32_t>() + at;
  const auto base = static_cast<std::int32_t>((begin_ + row_) * seq_len_);
  for (std::int64_t i = 0; i < seq_len_; ++i) {
    const bool valid = i < length;
    tokens[i] = valid ? tokens_[static_cast<std::size_t>(i)] : dataset_.tokenizer().eos_id();
    segments[i] = valid ? base + runs_[static_cast<std::size_t>(i)] : -1;
    domains[i] = valid ? domain : -1;
  }
  batch_.lengths.view().as<std::int32_t>()[row_] = static_cast<std::int32_t>(length);
  batch_.num_tokens += length;
  ++row_;
  next_run_ = 0;
  tokens_.clear();
  runs_.clear();
}

}  // namespace moecollab::data
