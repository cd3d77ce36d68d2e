// moecollab selftest: does this machine, with these ranks and threads, compute what it should? Small,
// seconds, no files but one temporary folder.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "app/commands.hpp"
#include "app/device.hpp"
#include "app/model_files.hpp"
#include "app/training_run.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/core/random.hpp"
#include "moecollab/nn/parameters.hpp"
#include "moecollab/train/gradients.hpp"
#include "moecollab/train/trainer.hpp"

namespace moecollab::app {

namespace {

constexpr std::int64_t kSequences = 6, kLength = 24, kVocab = 61;

nn::ModelConfig small_model(DType dtype) {
  nn::ModelConfig config;
  config.vocab_size = kVocab;
  config.hidden_size = 32;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = kLength;
  config.initializer_range = 0.2;
  config.dtype = dtype;
  return config;
}

// A model of five experts on the ranks of `parallel`, one batch, and the gradients of one step.
struct Trial {
  Trial(DType dtype, const nn::Parallel& parallel, PhaseClock& clock, Device device = Device::cpu)
      : config(small_model(dtype)),
        slots(nn::initial_slots({5, ExpertKind::swiglu, 24}, 7, parallel.expert_parallel_size())),
        params(nn::make_params(config, slots, parallel.expert_rank(), true)),
        share(nn::share_of(kSequences, parallel.world().rank(), parallel.world().size())),
        tokens(DType::i32, {share.end - share.begin, kLength}),
        targets(DType::i32, tokens.shape()),
        segments(DType::i32, tokens.shape()),
        lengths(DType::i32, {share.end - share.begin}),
        arena(kArenaSlabBytes, false, device) {
    nn::initialise_params(params, 7);
    params.move_to(device);
    for (std::int64_t b = share.begin; b < share.end; ++b) {
      lengths.view().as<std::int32_t>()[b - share.begin] = kLength;
      for (std::int64_t s = 0; s < kLength; ++s) {
        const auto draw = [&](std::int64_t i) {
          return static_cast<std::int32_t>(
              random_below(7, stream_of("selftest"), static_cast<std::uint64_t>(i), kVocab));
        };
        const std::int64_t at = (b - share.begin) * kLength + s;
        tokens.view().as<std::int32_t>()[at] = draw(b * (kLength + 1) + s);
        targets.view().as<std::int32_t>()[at] = draw(b * (kLength + 1) + s + 1);
      }
    }
    train_config.balance = {0.01, 1e-3, 0.01, 0.01};
    train::Trainer trainer(config, train_config, params, slots, parallel, clock, arena);
    nn::Batch batch;
    batch.tokens = tokens.view();
    batch.targets = targets.view();
    batch.segments = batch.domains = segments.view();
    batch.lengths = lengths.view();
    report = trainer.accumulate({&batch, 1});
    norm = train::global_grad_norm(trainer.step_context(), parallel);
    params.move_to(Device::cpu);  // where gradients are compared
  }

  nn::ModelConfig config;
  ExpertSlots slots;
  ParamStore params;
  nn::Share share;
  Tensor tokens, targets, segments, lengths;
  train::TrainConfig train_config;
  Arena arena;
  train::StepReport report;
  double norm = 0.0;
};

// Largest difference of a gradient element of the blocks that both hold, relative to the largest gradient.
double gradient_difference(const ParamStore& a, const ParamStore& b) {
  double difference = 0.0, largest = 0.0;
  const auto at = [](TensorView v, std::int64_t i) {
    return v.dtype == DType::f64 ? v.as<double>()[i] : static_cast<double>(v.as<float>()[i]);
  };
  for (const Block& block : a.blocks()) {
    const Block* other = b.find_block(block.kind, block.uuid);
    for (std::int64_t i = 0; i < block.numel; ++i) {
      const double d = std::abs(at(block.grad(), i) - at(other->grad(), i));
      if (!(d <= difference)) difference = d;  // a NaN stays
      largest = std::max(largest, std::abs(at(other->grad(), i)));
    }
  }
  return difference / largest;
}

}  // namespace

void run_selftest(const Job& job) {
  set_threads(job.settings, job.world);
  const ChosenDevice device = choose_device(job);
  const bool speaks = job.world.rank() == 0;
  bool all_ok = true;
  const auto check = [&](const std::string& what, double value, double bound) {
    const bool ok = job.world.all_agree(value <= bound);
    all_ok = all_ok && ok;
    if (speaks) fmt::print("{}  {:<66} {:.1e} <= {:.1e}\n", ok ? "ok  " : "FAIL", what, value, bound);
  };
  // A sum of n terms in another order differs by at most n * eps of the sum of magnitudes; n is what one
  // gradient element sums.
  constexpr double kTerms = static_cast<double>(kSequences * kLength);
  for (const DType dtype : {DType::f64, DType::f32}) {
    const double eps = dtype == DType::f64 ? std::numeric_limits<double>::epsilon()
                                           : static_cast<double>(std::numeric_limits<float>::epsilon());
    const nn::Parallel alone = nn::Parallel::single();
    const nn::Parallel together(job.world.split(0, job.world.rank()), job.world.size());
    const Trial one(dtype, alone, job.clock), many(dtype, together, job.clock);
    const std::string name = fmt::format("{} rank(s) against one, {}", job.world.size(), to_string(dtype));
    check("loss of " + name, std::abs(one.report.loss - many.report.loss) / one.report.loss, kTerms * eps);
    check("gradients of " + name, gradient_difference(many.params, one.params), kTerms * eps);
    check("gradient norm of " + name, std::abs(one.norm - many.norm) / one.norm, kTerms * eps);
    const Trial again(dtype, together, job.clock);
    check("the same run twice, bit for bit, " + std::string(to_string(dtype)),
          gradient_difference(again.params, many.params), 0.0);
  }
  if (speaks && device.device == Device::cpu) fmt::print("device: {}\n", device.text);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    if (device.device == Device::cpu) break;
    // Every operation orders its sums in its own way here: some ten of them follow one another, and in bf16
    // each rounds what it stores.
    const double bound = dtype == DType::f32 ? 10.0 * kTerms * std::numeric_limits<float>::epsilon()
                                             : 10.0 * std::ldexp(1.0, -8);
    const nn::Parallel alone = nn::Parallel::single();
    const nn::Parallel together(job.world.split(0, job.world.rank()), job.world.size());
    const Trial cpu(dtype, alone, job.clock), many(dtype, together, job.clock, device.device);
    const std::string name =
        fmt::format("{} rank(s) on cuda against one cpu, {}", job.world.size(), to_string(dtype));
    check("loss of " + name, std::abs(cpu.report.loss - many.report.loss) / cpu.report.loss, bound);
    // In bf16 a pick near a tie may fall to the other side, and single gradients with it.
    if (dtype == DType::f32)
      check("gradients of " + name, gradient_difference(many.params, cpu.params), bound);
    check("gradient norm of " + name, std::abs(cpu.norm - many.norm) / cpu.norm, bound);
    const Trial again(dtype, together, job.clock, device.device);
    check("the same run on cuda twice, bit for bit, " + std::string(to_string(dtype)),
          gradient_difference(again.params, many.params), 0.0);
  }
  if (speaks)
    fmt::print("{}\n", all_ok ? "this machine computes what it should"
                              : "this machine does NOT compute what it should");
  std::fflush(stdout);
  if (!all_ok) throw InternalError("selftest failed: see the lines that begin with FAIL");
}

}  // namespace moecollab::app
