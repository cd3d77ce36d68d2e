#include "moecollab/data/sampler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "batch_rows.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/core/random.hpp"

namespace moecollab::data {
namespace {

void check_seq_len(std::int64_t seq_len) {
  if (seq_len < 1) throw UsageError(fmt::format("the sequence length must be at least 1, it is {}", seq_len));
}

void check_task(const Dataset& dataset, Task task) {
  if (task == Task::classification && dataset.labels().empty())
    throw DataError(
        dataset.path() +
        ": its documents have no labels, which classification needs; prepare it from TSV, or from JSONL "
        "with --label-field");
}

std::vector<double> cumulative(const std::vector<double>& weights) {
  std::vector<double> sums;
  double sum = 0.0;
  for (const double weight : weights) sums.push_back(sum += weight);
  for (double& each : sums) each /= sum;
  return sums;
}

}  // namespace

Sampler::Sampler(const Dataset& dataset, const SamplerOptions& options)
    : dataset_(&dataset), options_(options) {
  check_seq_len(options.seq_len);
  check_task(dataset, options.task);
  const auto domains = static_cast<std::int32_t>(dataset.domains().size());
  first_window_.assign(1, 0);
  for (std::int32_t domain = 0; domain < domains; ++domain) {
    const std::int64_t size = extent(domain);
    // A single token has no successor: no window.
    const std::int64_t windows = options.task == Task::classification ? size
                                 : size < 2                           ? 0
                                            : std::max<std::int64_t>(1, size / options.seq_len);
    first_window_.push_back(first_window_.back() + windows);
  }
  if (samples_per_epoch() == 0)
    throw DataError(fmt::format("{}: /{} has nothing to read", dataset.path(), to_string(options.split)));
  if (options.domain_weights.empty()) return;

  const auto& weights = options.domain_weights;
  if (static_cast<std::int32_t>(weights.size()) != domains)
    throw UsageError(
        fmt::format("{} domain weights for the {} domains of {}", weights.size(), domains, dataset.path()));
  bool any = false;
  for (std::size_t d = 0; d < weights.size(); ++d) {
    if (!std::isfinite(weights[d]) || weights[d] < 0.0)
      throw UsageError(fmt::format("the weight of domain {} must be 0 or more, it is {}",
                                   dataset.domains()[d], weights[d]));
    if (weights[d] > 0.0 && first_window_[d + 1] == first_window_[d])
      throw UsageError(fmt::format("domain {} has weight {}, but {} has nothing of it in /{}",
                                   dataset.domains()[d], weights[d], dataset.path(),
                                   to_string(options.split)));
    any = any || weights[d] > 0.0;
  }
  if (!any) throw UsageError("all domain weights are 0: give at least one domain a weight");
  cumulative_weights_ = cumulative(weights);
}

std::int64_t Sampler::extent(std::int32_t domain) const {
  return options_.task == Task::lm ? dataset_->domain_tokens(options_.split, domain).size()
                                   : dataset_->domain_documents(options_.split, domain).size();
}

std::int64_t Sampler::samples_per_epoch() const { return first_window_.back(); }

Sampler::Sample Sampler::sample(std::int64_t index) const {
  const std::uint64_t seed = options_.seed;
  if (!cumulative_weights_.empty()) {
    const double u = random_uniform(seed, stream_of("data.domain"), static_cast<std::uint64_t>(index));
    const auto domain = static_cast<std::int32_t>(std::ranges::upper_bound(cumulative_weights_, u) -
                                                  cumulative_weights_.begin());
    std::int64_t start =
        random_below(seed, stream_of("data.start"), static_cast<std::uint64_t>(index), extent(domain));
    if (options_.task == Task::classification)
      start += dataset_->domain_documents(options_.split, domain).begin;
    return {domain, start};
  }
  const std::int64_t epoch = index / samples_per_epoch();
  const std::int64_t window = permuted(seed, stream_of("data.order") + static_cast<std::uint64_t>(epoch),
                                       index % samples_per_epoch(), samples_per_epoch());
  const auto domain =
      static_cast<std::int32_t>(std::ranges::upper_bound(first_window_, window) - first_window_.begin() - 1);
  if (options_.task == Task::classification) return {domain, window};
  const std::int64_t size = extent(domain);
  const auto draw =
      static_cast<std::uint64_t>(epoch) * dataset_->domains().size() + static_cast<std::uint64_t>(domain);
  const std::int64_t shift = random_below(seed, stream_of("data.shift"), draw, size);
  const std::int64_t in_domain = window - first_window_[static_cast<std::size_t>(domain)];
  return {domain, (shift + in_domain * options_.seq_len) % size};
}

Batch Sampler::batch(std::int64_t position, std::int64_t begin, std::int64_t end) const {
  BatchRows rows(*dataset_, options_.split, options_.task, options_.seq_len, begin, end);
  for (std::int64_t row = begin; row < end; ++row) {
    const Sample at = sample(position + row);
    if (options_.task == Task::lm)
      rows.add_window(at.domain, at.start, /*ring=*/true);
    else
      rows.add_document(at.domain, at.start);
  }
  return rows.take();
}

EvalSet::EvalSet(const Dataset& dataset, std::int64_t seq_len, std::int64_t max_sequences, Task task,
                 Split split)
    : dataset_(&dataset), seq_len_(seq_len), max_sequences_(max_sequences), task_(task), split_(split) {
  check_seq_len(seq_len);
  check_task(dataset, task);
}

std::int64_t EvalSet::num_domains() const { return static_cast<std::int64_t>(dataset_->domains().size()); }

std::int64_t EvalSet::available(std::int32_t domain) const {
  if (task_ == Task::classification) return dataset_->domain_documents(split_, domain).size();
  const std::int64_t targets = dataset_->domain_tokens(split_, domain).size() - 1;
  return targets <= 0 ? 0 : (targets + seq_len_ - 1) / seq_len_;
}

std::int64_t EvalSet::num_sequences(std::int32_t domain) const {
  return std::max<std::int64_t>(0, std::min(max_sequences_, available(domain)));
}

Batch EvalSet::batch(std::int32_t domain, std::int64_t begin, std::int64_t end) const {
  const std::int64_t count = num_sequences(domain);
  if (end > count)
    throw InternalError(fmt::format("sequence {} of {} of domain {} was asked for", end - 1, count, domain));
  BatchRows rows(*dataset_, split_, task_, seq_len_, begin, end);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t all = available(domain);
    const std::int64_t place =
        row * (all / count) + row * (all % count) / count;  // row * all / count, no overflow
    if (task_ == Task::lm)
      rows.add_window(domain, place * seq_len_, /*ring=*/false);
    else
      rows.add_document(domain, dataset_->domain_documents(split_, domain).begin + place);
  }
  return rows.take();
}

}  // namespace moecollab::data
