#include "moecollab/train/train_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

#include "moecollab/core/divisor.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::train {

namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, const Args&... args) {
  throw UsageError(fmt::vformat(fmt::string_view(text), fmt::make_format_args(args...)));
}

void at_least(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least)
    refuse("{} must be at least {}, but is {}; nearest valid: {}", name, least, value, least);
}

void not_negative(const char* name, double value) {
  if (!(std::isfinite(value) && value >= 0.0))
    refuse("{} must be a finite number of at least 0, but is {}", name, value);
}

void positive(const char* name, double value, double usual) {
  if (!(std::isfinite(value) && value > 0.0))
    refuse("{} must be a finite number above 0, but is {}; usual: {}", name, value, usual);
}

void finite(const char* name, double value) {
  if (!std::isfinite(value)) refuse("{} must be a finite number, but is {}", name, value);
}

void check_optimizer(const OptimizerConfig& c, std::int64_t steps) {
  positive("optimizer.lr", c.lr, 1e-3);
  if (!(c.min_lr_ratio >= 0.0 && c.min_lr_ratio <= 1.0))
    refuse("optimizer.min_lr_ratio must lie in [0, 1], but is {}; nearest valid: {}", c.min_lr_ratio,
           c.min_lr_ratio > 1.0 ? 1 : 0);
  at_least("optimizer.warmup_steps", c.warmup_steps, 0);
  if (c.warmup_steps > steps)
    refuse("optimizer.warmup_steps = {} must not exceed train.steps = {}; nearest valid: {}", c.warmup_steps,
           steps, steps);
  at_least("optimizer.decay_steps", c.decay_steps, 0);
  if (c.schedule == Schedule::wsd && c.decay_steps > steps - c.warmup_steps)
    refuse(
        "optimizer.decay_steps = {} does not fit between optimizer.warmup_steps = {} and train.steps = {}; "
        "nearest valid: {}",
        c.decay_steps, c.warmup_steps, steps, steps - c.warmup_steps);
  const auto check_beta = [](const char* name, double value, double usual) {
    if (!(value > 0.0 && value < 1.0))
      refuse("{} must lie in (0, 1), but is {}; usual: {}", name, value, usual);
  };
  check_beta("optimizer.beta1", c.beta1, 0.9);
  check_beta("optimizer.beta2", c.beta2, 0.95);
  positive("optimizer.eps", c.eps, 1e-8);
  not_negative("optimizer.weight_decay", c.weight_decay);
  not_negative("optimizer.clip_norm", c.clip_norm);
}

template <class Enum, std::size_t N>
Enum from_string(const char* what, const Enum (&all)[N], const std::string& name) {
  std::string allowed;
  for (const Enum value : all) {
    if (name == to_string(value)) return value;
    allowed += (allowed.empty() ? "" : ", ") + std::string(to_string(value));
  }
  refuse("there is no {} called '{}'; allowed: {}", what, name, allowed);
}

}  // namespace

void check(const TrainConfig& config, std::int64_t num_ranks, std::int64_t max_position_embeddings) {
  at_least("train.steps", config.steps, 1);
  at_least("train.batch_size", config.batch_size, 1);
  at_least("train.micro_batches", config.micro_batches, 1);
  if (config.batch_size % config.micro_batches != 0)
    refuse("train.micro_batches = {} must divide train.batch_size = {}; nearest valid: {}",
           config.micro_batches, config.batch_size, nearest_divisor(config.batch_size, config.micro_batches));
  at_least("train.seq_len", config.seq_len, 1);
  if (config.seq_len > max_position_embeddings)
    refuse("train.seq_len = {} must not exceed model.max_position_embeddings = {}; nearest valid: {}",
           config.seq_len, max_position_embeddings, max_position_embeddings);
  at_least("train.expert_parallel", config.expert_parallel, 0);
  if (config.expert_parallel > 0 && num_ranks % config.expert_parallel != 0) {
    const std::int64_t nearest = nearest_divisor(num_ranks, config.expert_parallel);
    refuse(
        "train.expert_parallel = {} must divide the number of ranks, {} (ranks = expert_parallel * "
        "replicas); nearest valid: {} (with {} replica{}), or 0 for all ranks",
        config.expert_parallel, num_ranks, nearest, num_ranks / nearest, num_ranks == nearest ? "" : "s");
  }
  at_least("train.eval_every", config.eval_every, 0);
  at_least("train.eval_sequences", config.eval_sequences, 1);
  at_least("train.checkpoint_every", config.checkpoint_every, 0);
  at_least("train.keep_checkpoints", config.keep_checkpoints, 1);
  not_negative("train.log_every_s", config.log_every_s);
  at_least("train.threads", config.threads, 0);
  at_least("train.overlap_chunks", config.overlap_chunks, 1);
  not_negative("train.selection_bias_rate", config.selection_bias_rate);
  not_negative("balance.balance", config.balance.balance);
  not_negative("balance.z_loss", config.balance.z_loss);
  finite("balance.token_entropy", config.balance.token_entropy);  // negative: spreads the picks of a token
  finite("balance.batch_entropy", config.balance.batch_entropy);
  check_optimizer(config.optimizer, config.steps);
}

// With W = warmup_steps, N = total_steps, r = min_lr_ratio, n = step:
//   n <= W           lr * n / W
//   cosine           lr * (r + (1 - r) * (1 + cos(pi * (n - W) / (N - W))) / 2)
//   wsd, n > N - d   lr * (r + (1 - r) * (N - n) / d)      with d = decay_steps
//   otherwise        lr
// So the peak is met at step W and the final rate r * lr at step N; beyond N it stays.
double learning_rate(const OptimizerConfig& config, std::int64_t step, std::int64_t total_steps) {
  const std::int64_t warmup = config.warmup_steps;
  if (step <= warmup) return config.lr * static_cast<double>(step) / static_cast<double>(warmup);
  const std::int64_t n = std::min(step, total_steps);
  double share = 1.0;  // of the way from the final rate up to the peak
  if (config.schedule == Schedule::cosine && total_steps > warmup) {
    const double done = static_cast<double>(n - warmup) / static_cast<double>(total_steps - warmup);
    share = 0.5 * (1.0 + std::cos(std::numbers::pi * done));
  } else if (config.schedule == Schedule::wsd) {
    const std::int64_t wanted = config.decay_steps > 0 ? config.decay_steps : total_steps / 5;
    const std::int64_t decay = std::min(wanted, total_steps - warmup);
    if (decay > 0 && n > total_steps - decay)
      share = static_cast<double>(total_steps - n) / static_cast<double>(decay);
  }
  return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * share);
}

const char* to_string(Schedule schedule) {
  switch (schedule) {
    case Schedule::constant:
      return "constant";
    case Schedule::cosine:
      return "cosine";
    case Schedule::wsd:
      return "wsd";
  }
  return "?";
}

const char* to_string(Trainable trainable) { return trainable == Trainable::all ? "all" : "router"; }

Schedule schedule_from_string(const std::string& name) {
  return from_string("optimizer.schedule", {Schedule::constant, Schedule::cosine, Schedule::wsd}, name);
}

Trainable trainable_from_string(const std::string& name) {
  return from_string("train.trainable", {Trainable::all, Trainable::router}, name);
}

}  // namespace moecollab::train
