#include <fmt/format.h>

#include <algorithm>

#include "app/training_run.hpp"
#include "moecollab/nn/memory.hpp"
#include "moecollab/nn/parameters.hpp"

namespace moecollab::app {

namespace {

std::int64_t numel(const std::vector<ParamSpec>& specs) {
  std::int64_t sum = 0;
  for (const ParamSpec& spec : specs) sum += spec.shape.numel();
  return sum;
}

std::string mib(double bytes) { return fmt::format("{:.1f} MiB", bytes / (1024.0 * 1024.0)); }

}  // namespace

std::string plan(const config::Settings& settings, const nn::ModelConfig& model, const ExpertSlots& slots,
                 std::int64_t num_ranks, std::int64_t expert_parallel_size) {
  const nn::ParamCounts counts = nn::count_params(model, slots);
  // Value, gradient and two moments; where the compute type is narrower, a master copy more.
  const double wide = static_cast<double>(size_bytes(accumulator_of(model.dtype)));
  const double narrow = static_cast<double>(size_bytes(model.dtype));
  const bool has_master = model.dtype != accumulator_of(model.dtype);
  const double trained = narrow + 3.0 * wide + (has_master ? wide : 0.0);
  const double gate = 4.0 * wide;  // router rows are kept in the wide type

  const auto shared = static_cast<double>(numel(nn::trunk_specs(model)));
  const auto router = static_cast<double>(numel(nn::router_specs(model)) * slots.size());
  double most = 0.0;
  std::string placement;
  for (std::int32_t rank = 0; rank < expert_parallel_size; ++rank) {
    double experts = 0.0;
    std::string names;
    for (const std::int32_t at : slots.owned_by(rank)) {
      const ExpertSlot& slot = slots.slots()[static_cast<std::size_t>(at)];
      experts += static_cast<double>(numel(nn::expert_specs(model, slot)));
      names += (names.empty() ? "" : ", ") + slot.name;
    }
    placement += fmt::format("  rank {:<4} {}\n", rank, names.empty() ? "no expert" : names);
    most = std::max(most, experts);
  }
  std::int64_t activations = 0;
  const std::int64_t micro_batch = settings.train.batch_size / settings.train.micro_batches;
  for (std::int64_t rank = 0; rank < expert_parallel_size; ++rank)
    activations = std::max(activations,
                           nn::activation_bytes_bound(model, slots,
                                                      {(micro_batch + num_ranks - 1) / num_ranks,
                                                       settings.train.seq_len, expert_parallel_size, rank}));
  std::string out;
  out += fmt::format("parameters       {} in all, {} at work on a token\n", counts.total, counts.active);
  out += fmt::format("ranks            {} = {} expert-parallel x {} replica(s)\n", num_ranks,
                     expert_parallel_size, num_ranks / expert_parallel_size);
  out += fmt::format("weights + state  {} on the fullest rank, when all of it learns\n",
                     mib((shared + most) * trained + router * gate));
  out += fmt::format("activations      {} at most on a rank, if all tokens chose its experts{}\n",
                     mib(static_cast<double>(activations)),
                     model.max_rows == 0 ? "; model.max_rows bounds it further" : "");
  out += fmt::format("tokens           {} per step, {} in all\n",
                     settings.train.batch_size * settings.train.seq_len,
                     settings.train.batch_size * settings.train.seq_len * settings.train.steps);
  return out + "experts\n" + placement;
}

}  // namespace moecollab::app
