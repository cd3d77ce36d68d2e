// step_benchmark: whole training steps on random tokens against the machine's matrix-product limit, measured
// in the same run on the same ranks. One rank, or more under mpirun (experts spread over all of them).
//
//   step_benchmark [--dtype f32|bf16] [--layers L] [--hidden D] [--experts E] [--width F] [--top-k K]
//   [--batch B] [--seq S]
//                  [--vocab V] [--steps N] [--json FILE]
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "moecollab/core/error.hpp"
#include "moecollab/core/random.hpp"
#include "moecollab/nn/parameters.hpp"
#include "moecollab/ops/linear.hpp"
#include "moecollab/train/trainer.hpp"

namespace moecollab {
namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Best of five: GFLOP/s of one large product on every rank at once, summed over ranks.
double peak_gflops(const Communicator& world, DType dtype) {
  constexpr std::int64_t kN = 1024;
  Stream stream;
  Tensor x(dtype, {kN, kN}), w(dtype, {kN, kN}), y(dtype, {kN, kN});
  fill_normal(1, 1, 1.0, x.view());
  fill_normal(1, 2, 1.0, w.view());
  double best = 1e30;
  for (int i = 0; i < 6; ++i) {
    world.barrier();
    const double start = seconds();
    for (int repeat = 0; repeat < 4; ++repeat) ops::linear_forward(stream, x.view(), w.view(), y.view());
    if (i > 0) best = std::min(best, seconds() - start);
  }
  double gflops = 4 * 2.0 * kN * kN * kN / best * 1e-9;
  world.all_reduce_sum(stream, {&gflops, DType::f64, Device::cpu, {1}});
  return gflops;
}

// Multiply-adds of forward and backward per token, counted twice as FLOPs: 6 for each weight that works on a
// token, and attention's products with scores, causal half.
double flops_per_token(const nn::ModelConfig& config, const ExpertSlots& slots, std::int64_t seq) {
  const auto active = static_cast<double>(nn::count_params(config, slots).active);
  const auto embedding =
      static_cast<double>(config.vocab_size * config.hidden_size);  // looked up, not multiplied
  const auto attention =
      static_cast<double>(config.num_hidden_layers * config.num_attention_heads * config.head_dim * seq);
  return 6.0 * (active - embedding) + 6.0 * attention;
}

int run(std::map<std::string, std::string> options) {
  const Communicator world = Communicator::world();
  const auto number = [&](const char* name) { return std::int64_t{std::stoll(options.at(name))}; };
  nn::ModelConfig config;
  config.dtype = dtype_from_string(options.at("dtype"));
  config.vocab_size = number("vocab");
  config.hidden_size = number("hidden");
  config.num_hidden_layers = number("layers");
  config.head_dim = 64;
  config.num_attention_heads = std::max<std::int64_t>(1, config.hidden_size / 64);
  config.num_key_value_heads = config.num_attention_heads;
  config.max_position_embeddings = number("seq");
  config.num_experts_per_tok = number("top-k");
  nn::check(config, number("experts"));

  const nn::Parallel parallel(world.split(0, world.rank()), world.size());
  ExpertSlots slots =
      nn::initial_slots({number("experts"), ExpertKind::swiglu, number("width")}, 1, world.size());
  ParamStore params = nn::make_params(config, slots, parallel.expert_rank(), true);
  nn::initialise_params(params, 1);
  train::TrainConfig train_config;
  train_config.balance.balance = 0.01;
  PhaseClock clock;
  Arena arena;
  train::Trainer trainer(config, train_config, params, slots, parallel, clock, arena);

  const std::int64_t seq = number("seq");
  const nn::Share share = nn::share_of(number("batch"), world.rank(), world.size());
  const Shape shape{share.end - share.begin, seq};
  Tensor tokens(DType::i32, shape), targets(DType::i32, shape), zeros(DType::i32, shape),
      lengths(DType::i32, {shape[0]});
  for (std::int64_t i = 0; i < tokens.shape().numel(); ++i) {
    const auto at = static_cast<std::uint64_t>(share.begin * seq + i);
    tokens.view().as<std::int32_t>()[i] =
        static_cast<std::int32_t>(random_below(1, 1, at, config.vocab_size));
    targets.view().as<std::int32_t>()[i] =
        static_cast<std::int32_t>(random_below(1, 2, at, config.vocab_size));
  }
  for (std::int64_t b = 0; b < shape[0]; ++b)
    lengths.view().as<std::int32_t>()[b] = static_cast<std::int32_t>(seq);
  nn::Batch batch;
  batch.tokens = tokens.view();
  batch.targets = targets.view();
  batch.segments = batch.domains = zeros.view();
  batch.lengths = lengths.view();

  const double peak = peak_gflops(world, config.dtype);
  std::vector<double> step_s;
  std::array<double, kNumPhases> phases{};
  const std::int64_t steps = number("steps");
  for (std::int64_t step = 1; step <= steps + 2; ++step) {  // two to warm up
    world.barrier();
    clock.lap_ms();
    const double start = seconds();
    trainer.train_step(step, {&batch, 1});
    const auto lap = clock.lap_ms();
    if (step <= 2) continue;
    step_s.push_back(seconds() - start);
    for (std::size_t p = 0; p < kNumPhases; ++p) phases[p] += lap[p] / static_cast<double>(steps);
  }
  std::sort(step_s.begin(), step_s.end());
  const double median_s = step_s[step_s.size() / 2];
  const double tokens_per_s = static_cast<double>(number("batch") * seq) / median_s;
  const double gflops = tokens_per_s * flops_per_token(config, slots, seq) * 1e-9;
  if (world.rank() != 0) return 0;
  fmt::print("{} rank(s) x {} thread(s), {}; {} parameters, {} active\n", world.size(), omp_get_max_threads(),
             to_string(config.dtype), nn::count_params(config, slots).total,
             nn::count_params(config, slots).active);
  fmt::print("limit      {:8.1f} GFLOP/s (1024^3 products on all ranks at once)\n", peak);
  fmt::print("step       {:8.1f} ms median of {} ({:.1f} to {:.1f})\n", median_s * 1e3, steps,
             step_s.front() * 1e3, step_s.back() * 1e3);
  fmt::print("throughput {:8.0f} tokens/s, {:.1f} GFLOP/s = {:.0f} % of the limit\n", tokens_per_s, gflops,
             100.0 * gflops / peak);
  for (std::size_t p = 0; p < kNumPhases; ++p)
    if (phases[p] > 0.005) fmt::print("  {:<12} {:8.2f} ms\n", to_string(static_cast<Phase>(p)), phases[p]);
  if (const std::string& path = options.at("json"); !path.empty()) {
    std::FILE* file = std::fopen(path.c_str(), "w");
    if (file == nullptr) throw IoError("cannot write " + path);
    fmt::print(file,
               "{{\"ranks\": {}, \"threads\": {}, \"dtype\": \"{}\", \"limit_gflops\": {}, \"step_ms\": {}, "
               "\"tokens_per_s\": {}, \"gflops\": {}, \"share_of_limit\": {}",
               world.size(), omp_get_max_threads(), to_string(config.dtype), peak, median_s * 1e3,
               tokens_per_s, gflops, gflops / peak);
    for (std::size_t p = 0; p < kNumPhases; ++p)
      fmt::print(file, ", \"{}_ms\": {}", to_string(static_cast<Phase>(p)), phases[p]);
    fmt::print(file, "}}\n");
    if (std::fclose(file) != 0) throw IoError("cannot write " + path);
  }
  return 0;
}

}  // namespace
}  // namespace moecollab

int main(int argc, char** argv) {
  const moecollab::MpiSession session(&argc, &argv);
  std::map<std::string, std::string> options{{"dtype", "f32"}, {"layers", "4"},  {"hidden", "256"},
                                             {"experts", "8"}, {"width", "512"}, {"top-k", "2"},
                                             {"batch", "16"},  {"seq", "256"},   {"vocab", "4096"},
                                             {"steps", "10"},  {"json", ""}};
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name =
        std::string(argv[i]).substr(std::min<std::size_t>(2, std::string(argv[i]).size()));
    if (options.find(name) == options.end()) {
      fmt::print(stderr, "step_benchmark: unknown option {}\n", argv[i]);
      return 64;
    }
    options[name] = argv[i + 1];
  }
  try {
    return moecollab::run(options);
  } catch (const moecollab::Error& error) {
    fmt::print(stderr, "step_benchmark: {}\n", error.what());
    moecollab::MpiSession::abort(static_cast<int>(error.code()));
  }
}
