// moecollab generate: text from a checkpoint, token by token.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "app/commands.hpp"
#include "app/device.hpp"
#include "app/model_files.hpp"
#include "app/training_run.hpp"
#include "moecollab/core/device.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/core/random.hpp"
#include "moecollab/nn/transformer.hpp"

namespace moecollab::app {

namespace {

double logit(ConstTensorView row, std::int64_t i) {
  if (row.dtype == DType::f64) return row.as<double>()[i];
  if (row.dtype == DType::bf16) return static_cast<double>(static_cast<float>(row.as<BFloat16>()[i]));
  return static_cast<double>(row.as<float>()[i]);
}

// Temperature, then the smallest set of tokens with probability top_p, then a draw with the counter `index`.
std::int32_t sample(ConstTensorView row, const config::SamplingSettings& sampling, std::uint64_t index) {
  const std::int64_t vocab = row.numel();
  std::vector<std::int32_t> order(static_cast<std::size_t>(vocab));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return logit(row, a) > logit(row, b); });
  if (sampling.temperature == 0.0) return order[0];
  std::vector<double> weights;
  double total = 0.0;
  for (const std::int32_t token : order) {
    weights.push_back(std::exp((logit(row, token) - logit(row, order[0])) / sampling.temperature));
    total += weights.back();
  }
  double kept = 0.0;
  std::size_t count = 0;
  while (count < weights.size() && kept < sampling.top_p * total) kept += weights[count++];
  double draw = random_uniform(sampling.seed, stream_of("generate"), index) * kept;
  std::size_t at = 0;
  while (at + 1 < count && draw >= weights[at]) draw -= weights[at++];
  return order[at];
}

// Bytes of `text` that end no later than the last whole UTF-8 character.
std::size_t whole_characters(const std::string& text) {
  std::size_t start = text.size();
  while (start > 0 && (static_cast<unsigned char>(text[start - 1]) & 0xc0u) == 0x80u) --start;
  if (start == 0) return text.size();
  const auto lead = static_cast<unsigned char>(text[start - 1]);
  const std::size_t need = lead >= 0xf0u ? 4 : lead >= 0xe0u ? 3 : lead >= 0xc0u ? 2 : 1;
  return text.size() - (start - 1) >= need ? text.size() : start - 1;
}

}  // namespace

void run_generate(const Job& job) {
  const config::Settings& settings = job.settings;
  set_threads(settings, job.world);
  const nn::Parallel parallel(job.world.split(0, job.world.rank()), job.world.size());
  const bool speaks = parallel.world().rank() == 0;
  if (settings.checkpoints.size() != 1)
    throw UsageError("generate reads one checkpoint, but " + std::to_string(settings.checkpoints.size()) +
                     " were given");
  const ChosenDevice chosen = choose_device(job);
  const std::string checkpoint = named_path(settings.checkpoints[0]).path;
  Model model = load_model(find_checkpoint(checkpoint), settings, parallel, Learn::nothing, Restore::weights,
                           settings.without);
  if (model.config.head != nn::Head::lm || !model.config.causal || model.config.routing != nn::Routing::token)
    throw UsageError(
        "generate needs a causal language model that routes by token (model.head = lm, model.causal = true, "
        "model.routing = token)");
  const data::Tokenizer tokenizer = data::Tokenizer::deserialise(
      {reinterpret_cast<const std::uint8_t*>(model.tokenizer.data()), model.tokenizer.size()}, checkpoint);
  std::vector<std::int32_t> ids = {tokenizer.eos_id()};  // what stands before every document
  const std::vector<std::int32_t> prompt = tokenizer.encode(settings.sampling.prompt);
  ids.insert(ids.end(), prompt.begin(), prompt.end());
  const auto prompt_len = static_cast<std::int64_t>(ids.size());
  const std::int64_t max_len = model.config.max_position_embeddings;
  if (prompt_len >= max_len)
    throw UsageError("the prompt has " + std::to_string(prompt_len) + " tokens, and the model has " +
                     std::to_string(max_len) + " positions: shorten the prompt");
  if (prompt_len + settings.sampling.tokens > max_len)
    throw UsageError("the prompt has " + std::to_string(prompt_len) + " tokens; with " +
                     std::to_string(settings.sampling.tokens) + " more it is longer than the model's " +
                     std::to_string(max_len) + " positions: ask for at most " +
                     std::to_string(std::max<std::int64_t>(0, max_len - prompt_len)));

  const nn::Transformer transformer(model.config, model.params, model.slots, parallel);
  const Device device = device_for(job, chosen, model).device;
  model.params.move_to(device);
  Stream compute(device), transfer(device), exchange(device);
  Arena arena(kArenaSlabBytes, false, device);
  Step step{compute, transfer, exchange, arena, model.params, job.clock, settings.sampling.seed};
  const std::int64_t rows = speaks ? 1 : 0;  // the other ranks only lend their experts
  const auto caches = transformer.make_caches(arena, rows, max_len);
  const TensorView logits = arena.tensor(model.config.dtype, {rows, model.config.vocab_size});
  auto length = static_cast<std::int32_t>(prompt_len);
  std::vector<std::int32_t> zeros(ids.size(), 0);
  nn::Batch batch;
  batch.tokens = {ids.data(), DType::i32, Device::cpu, {rows, prompt_len}};
  batch.lengths = {&length, DType::i32, Device::cpu, {rows}};
  batch.segments = batch.domains = {zeros.data(), DType::i32, Device::cpu, {rows, prompt_len}};
  batch.global_tokens = prompt_len;
  transformer.prefill(step, batch, caches, logits);

  std::size_t printed = 0;
  const auto print = [&](bool all) {
    const std::string text = tokenizer.decode(ids);
    const std::size_t end = all ? text.size() : whole_characters(text);
    std::fwrite(text.data() + printed, 1, end - printed, stdout);
    std::fflush(stdout);
    printed = end;
  };
  for (std::int64_t i = 0; i < settings.sampling.tokens; ++i) {
    const ConstTensorView scores = read_back(compute, logits);
    std::int32_t next = speaks ? sample(scores.reshaped({model.config.vocab_size}), settings.sampling,
                                        static_cast<std::uint64_t>(i))
                               : 0;
    parallel.world().broadcast(compute, {&next, DType::i32, Device::cpu, {1}}, 0);
    if (next == tokenizer.eos_id()) break;
    ids.push_back(next);
    if (speaks) print(false);
    auto position = static_cast<std::int32_t>(ids.size() - 1);
    if (i + 1 < settings.sampling.tokens)
      transformer.decode(step, {&next, DType::i32, Device::cpu, {rows}},
                         {&position, DType::i32, Device::cpu, {rows}}, caches, logits);
  }
  if (speaks) {
    print(true);
    std::fputc('\n', stdout);
  }
}

}  // namespace moecollab::app
