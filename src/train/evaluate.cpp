#include "moecollab/train/evaluate.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "moecollab/core/device.hpp"
#include "moecollab/train/batches.hpp"
#include "moecollab/train/trainer.hpp"

namespace moecollab::train {

namespace {

double at(ConstTensorView values, std::int64_t i) {
  if (values.dtype == DType::f64) return values.as<double>()[i];
  if (values.dtype == DType::bf16) return static_cast<double>(static_cast<float>(values.as<BFloat16>()[i]));
  return static_cast<double>(values.as<float>()[i]);
}

// Right answers, and per class: right, labelled, predicted.
struct Confusion {
  explicit Confusion(std::int64_t num_labels) : counts(static_cast<std::size_t>(3 * num_labels), 0) {}

  void add(ConstTensorView logits, ConstTensorView labels) {
    const std::int64_t classes = logits.dim(1);
    for (std::int64_t i = 0; i < labels.numel(); ++i) {
      const std::int32_t label = labels.as<std::int32_t>()[i];
      if (label < 0) continue;
      std::int64_t best = 0;
      for (std::int64_t c = 1; c < classes; ++c)
        if (at(logits, i * classes + c) > at(logits, i * classes + best)) best = c;
      const auto n = static_cast<std::size_t>(classes);
      counts[static_cast<std::size_t>(label)] += best == label ? 1 : 0;
      ++counts[n + static_cast<std::size_t>(label)];
      ++counts[2 * n + static_cast<std::size_t>(best)];
    }
  }
  double accuracy() const {
    std::int64_t right = 0, all = 0;
    for (std::size_t c = 0; c < counts.size() / 3; ++c) {
      right += counts[c];
      all += counts[counts.size() / 3 + c];
    }
    return all > 0 ? static_cast<double>(right) / static_cast<double>(all) : 0.0;
  }
  double macro_f1() const {
    const std::size_t n = counts.size() / 3;
    double sum = 0.0;
    int classes = 0;
    for (std::size_t c = 0; c < n; ++c) {
      if (counts[n + c] == 0) continue;
      sum += 2.0 * static_cast<double>(counts[c]) / static_cast<double>(counts[n + c] + counts[2 * n + c]);
      ++classes;
    }
    return classes > 0 ? sum / classes : 0.0;
  }

  std::vector<std::int64_t> counts;
};

DomainScore evaluate_domain(Step& step, const nn::Transformer& model, const nn::Parallel& parallel,
                            const data::EvalSet& set, std::int32_t domain, std::int64_t batch_size) {
  const nn::ModelConfig& config = model.config();
  const Communicator& world = parallel.world();
  const bool classifier = config.head == nn::Head::classifier;
  DomainScore score;
  score.sequences = set.num_sequences(domain);
  score.picks.assign(static_cast<std::size_t>(model.num_experts()), 0);
  Confusion confusion(std::max<std::int64_t>(config.num_labels, 0));
  double loss_sum = 0.0, tokens = 0.0;
  for (std::int64_t begin = 0; begin < score.sequences; begin += batch_size) {
    const ArenaScope scope(step.arena);
    const std::int64_t count = std::min(batch_size, score.sequences - begin);
    const nn::Share share = nn::share_of(count, world.rank(), world.size());
    const data::Batch rows = set.batch(domain, begin + share.begin, begin + share.end);
    nn::Batch batch = view(rows);
    count_globally(step.compute, world, {&batch, 1});
    const TensorView losses =
        step.arena.tensor(step.params.accumulator_dtype(), model.head().losses_shape(batch));
    const TensorView logits =
        classifier ? step.arena.tensor(config.dtype, {batch.batch_size(), config.num_labels}) : TensorView{};
    const nn::LossReport report = model.evaluate(step, batch, {}, losses, classifier ? &logits : nullptr);
    if (classifier) confusion.add(read_back(step.compute, logits), batch.targets);
    loss_sum += report.loss_sum;
    score.targets += batch.global_targets;
    for (const std::int64_t bytes : rows.target_bytes) score.bytes += bytes;
    for (std::size_t i = 0; i < report.picks.size(); ++i)
      score.picks[i % score.picks.size()] += report.picks[i];
    for (const ops::BalanceLosses& layer : report.layers)
      score.token_entropy += layer.token_entropy * static_cast<double>(batch.global_tokens);
    tokens += static_cast<double>(batch.global_tokens) *
              static_cast<double>(std::max<std::size_t>(report.layers.size(), 1));
  }
  world.all_reduce_sum(step.compute, {&score.bytes, DType::i64, Device::cpu, {1}});
  world.all_reduce_sum(step.compute, {confusion.counts.data(),
                                      DType::i64,
                                      Device::cpu,
                                      {static_cast<std::int64_t>(confusion.counts.size())}});
  score.loss = score.targets > 0 ? loss_sum / static_cast<double>(score.targets) : 0.0;
  score.bits_per_byte =
      score.bytes > 0 ? loss_sum / std::numbers::ln2 / static_cast<double>(score.bytes) : 0.0;
  score.token_entropy = tokens > 0.0 ? score.token_entropy / tokens : 0.0;
  score.accuracy = confusion.accuracy();
  score.macro_f1 = confusion.macro_f1();
  return score;
}

}  // namespace

Scores evaluate(Step& step, const nn::Transformer& model, const nn::Parallel& parallel,
                const data::Dataset& dataset, const data::EvalSet& set, std::int64_t batch_size) {
  const PhaseScope phase(step.clock, Phase::eval);
  Scores scores;
  const auto num_experts = static_cast<std::size_t>(model.num_experts());
  std::vector<double> shares(num_experts, 0.0);
  int domains = 0;
  for (std::int32_t d = 0; d < set.num_domains(); ++d) {
    if (set.num_sequences(d) == 0) continue;
    DomainScore score = evaluate_domain(step, model, parallel, set, d, batch_size);
    score.domain = dataset.domains()[static_cast<std::size_t>(d)];
    double picks = 0.0;
    for (const std::int64_t count : score.picks) picks += static_cast<double>(count);
    for (std::size_t e = 0; e < num_experts && picks > 0.0; ++e)
      shares[e] += static_cast<double>(score.picks[e]) / picks;
    scores.token_entropy += score.token_entropy;
    scores.domains.push_back(std::move(score));
    ++domains;
  }
  if (domains == 0) return scores;
  scores.token_entropy /= domains;
  double entropy = 0.0;
  for (double share : shares) {
    share /= domains;
    if (share > 0.0) entropy -= share * std::log(share);
  }
  scores.batch_entropy = num_experts > 1 ? entropy / std::log(static_cast<double>(num_experts)) : 0.0;
  if (num_experts > 0) scores.utilisation = std::exp(entropy) / static_cast<double>(num_experts);
  return scores;
}

}  // namespace moecollab::train
