// How a model is trained. Plain data; `check` holds it against the rank count and the model before any work
// starts.
#pragma once

#include <cstdint>
#include <string>

#include "moecollab/ops/route_top_k.hpp"

namespace moecollab::train {

enum class Schedule : std::uint8_t { constant, cosine, wsd };
enum class Trainable : std::uint8_t {
  all,     // trunk, routers and experts
  router,  // the gate alone: router rows and logit biases of every expert
};

struct OptimizerConfig {
  double lr = 1e-3;           // peak learning rate
  double min_lr_ratio = 0.1;  // final learning rate / peak
  std::int64_t warmup_steps = 20;
  Schedule schedule = Schedule::cosine;
  std::int64_t decay_steps =
      0;  // wsd: the last steps, in which the rate falls linearly; 0: a fifth of all steps
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip_norm = 1.0;  // global norm; 0: no clipping
};

struct TrainConfig {
  std::int64_t steps = 200;
  std::int64_t batch_size = 16;    // sequences per optimizer step, over all ranks
  std::int64_t micro_batches = 1;  // gradient accumulation; divides batch_size
  std::int64_t seq_len = 256;      // S
  std::uint64_t seed = 1;
  Trainable trainable = Trainable::all;
  std::int64_t expert_parallel =
      0;  // ranks a set of experts is spread over; 0: all ranks. ranks = expert_parallel * replicas
  std::int64_t eval_every = 0;        // steps between evaluations; 0: only at the end
  std::int64_t eval_sequences = 64;   // per domain
  std::int64_t checkpoint_every = 0;  // steps between checkpoints; 0: only at the end
  std::int64_t keep_checkpoints = 2;  // the newest ones kept
  double log_every_s = 2.0;           // least time between progress lines
  std::int64_t threads = 0;           // OpenMP threads per rank; 0: cores / ranks on this host
  std::int64_t overlap_chunks =
      1;  // parts in which a layer's rows travel between ranks while the experts work; 1: no overlap
  double selection_bias_rate = 0.0;  // u of aux-loss-free balancing; 0: off
  ops::BalanceOptions balance;
  OptimizerConfig optimizer;
};

// Throws UsageError naming the rule, the values and the nearest valid choice.
void check(const TrainConfig& config, std::int64_t num_ranks, std::int64_t max_position_embeddings);

// Learning rate of update `step` (from 1). Linear warm-up, then the schedule.
double learning_rate(const OptimizerConfig& config, std::int64_t step, std::int64_t total_steps);

const char* to_string(Schedule schedule);
const char* to_string(Trainable trainable);
Schedule schedule_from_string(const std::string& name);
Trainable trainable_from_string(const std::string& name);

}  // namespace moecollab::train
