#include "support/tiny_model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "moecollab/core/random.hpp"

namespace moecollab::test {

namespace {

constexpr std::uint64_t kKey = 0x7157;
constexpr std::int64_t kDomains = 3;

std::uint64_t stream_for(const TinySpec& spec, const std::string& what) {
  return stream_of((std::to_string(spec.seed) + "/" + what).c_str());
}

}  // namespace

std::string name_of(const TinySpec& spec) { return spec.name; }

TinySpec in_type(TinySpec spec, DType dtype) {
  spec.config.dtype = dtype;
  return spec;
}

ExpertSlots tiny_slots(const TinySpec& spec, std::int32_t expert_parallel_size) {
  ExpertSlots slots(expert_parallel_size);
  for (std::int64_t i = 0; i < spec.num_experts; ++i) {
    ExpertSlot slot;
    slot.uuid = Uuid::from_seed(7, static_cast<std::uint64_t>(i));
    slot.name = "expert-" + std::to_string(i);
    const bool adapter = spec.mix == ExpertMix::adapter || (spec.mix == ExpertMix::mixed && i % 2 == 1);
    slot.kind = adapter ? ExpertKind::adapter : ExpertKind::swiglu;
    slot.width = 2 + i * 3 % 4;
    slots.insert(slot);
  }
  return slots;
}

// The second domain has one expert only, so that a pick is missing.
std::vector<std::vector<std::int32_t>> tiny_experts_of_domain(const TinySpec& spec) {
  if (spec.config.routing != nn::Routing::fixed) return {};
  std::vector<std::vector<std::int32_t>> experts;
  const auto num_experts = static_cast<std::int32_t>(spec.num_experts);
  for (std::int32_t d = 0; d < kDomains; ++d) {
    experts.push_back({d % num_experts});
    if (d != 1) experts.back().push_back((d + 1) % num_experts);
  }
  return experts;
}

void fill_lively(const TinySpec& spec, ParamStore& params) {
  for (const Block& block : params.blocks()) {
    for (std::size_t i = 0; i < block.params.size(); ++i) {
      const std::string& name = block.params[i].spec.name;
      const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
      const bool norm = has("norm");
      double std = 0.3;
      if (has("embed_tokens")) std = 0.8;
      if (has("selection_bias")) std = spec.selection_bias ? 0.1 : 0.0;
      if (block.kind == BlockKind::router && name.ends_with(".weight")) std = 0.6;
      const TensorView to = block.part(block.master(), static_cast<std::int32_t>(i));
      const Tensor drawn(DType::f64, to.shape);
      fill_normal(kKey,
                  stream_for(spec, std::string(to_string(block.kind)) + to_string(block.uuid) + "/" + name),
                  norm ? 0.2 : std, drawn.view());
      if (norm)
        for (std::int64_t j = 0; j < to.numel(); ++j) drawn.view().as<double>()[j] += 1.0;
      copy_convert(drawn.view(), to);
    }
    params.refresh_value(block.id);
  }
}

namespace {

// One row of a global micro-batch, by (spec, step, micro-batch, row) alone.
void fill_row(const TinySpec& spec, std::int64_t step, std::int64_t micro_batch, std::int64_t row,
              std::int64_t at, const OwnedBatch& out) {
  const std::int64_t s = spec.seq_len;
  const std::uint64_t stream =
      stream_for(spec, "row " + std::to_string(step) + "." + std::to_string(micro_batch));
  const auto draw = [&](std::int64_t what, std::int64_t bound) {
    return static_cast<std::int32_t>(
        random_below(kKey, stream, static_cast<std::uint64_t>(row * 1024 + what), bound));
  };
  const bool classifier = spec.config.head == nn::Head::classifier;
  const std::int32_t length = spec.padded && row > 0 ? 1 + draw(0, s) : static_cast<std::int32_t>(s);
  out.lengths.view().as<std::int32_t>()[at] = length;
  if (classifier)
    out.targets.view().as<std::int32_t>()[at] = row % 4 == 3 ? -1 : draw(1, spec.config.num_labels);
  std::int32_t run = 0, domain = draw(2, kDomains);
  for (std::int64_t i = 0; i < s; ++i) {
    const std::int64_t to = at * s + i;
    const bool valid = i < length;
    if (i > 0 && draw(8 + 4 * i, 3) == 0) ++run, domain = draw(9 + 4 * i, kDomains);
    out.tokens.view().as<std::int32_t>()[to] = draw(10 + 4 * i, spec.config.vocab_size);
    out.segments.view().as<std::int32_t>()[to] = valid ? static_cast<std::int32_t>(row * s) + run : -1;
    out.domains.view().as<std::int32_t>()[to] = valid ? domain : -1;
    if (!classifier) {
      const bool target = valid && (row + i) % 7 != 5;
      out.targets.view().as<std::int32_t>()[to] = target ? draw(11 + 4 * i, spec.config.vocab_size) : -1;
    }
  }
}

OwnedBatch make_rows(const TinySpec& spec, std::int64_t step, std::int64_t micro_batch, nn::Share rows) {
  const std::int64_t b = rows.end - rows.begin, s = spec.seq_len;
  OwnedBatch batch;
  batch.tokens = Tensor(DType::i32, {b, s});
  batch.segments = Tensor(DType::i32, {b, s});
  batch.domains = Tensor(DType::i32, {b, s});
  batch.lengths = Tensor(DType::i32, {b});
  batch.targets = Tensor(DType::i32, spec.config.head == nn::Head::classifier ? Shape{b} : Shape{b, s});
  for (std::int64_t row = rows.begin; row < rows.end; ++row)
    fill_row(spec, step, micro_batch, row, row - rows.begin, batch);
  batch.view.tokens = batch.tokens.view();
  batch.view.targets = batch.targets.view();
  batch.view.lengths = batch.lengths.view();
  batch.view.segments = batch.segments.view();
  batch.view.domains = batch.domains.view();
  return batch;
}

}  // namespace

std::vector<OwnedBatch> tiny_batches(const TinySpec& spec, std::int64_t step, std::int64_t rank,
                                     std::int64_t size) {
  std::vector<OwnedBatch> batches;
  std::int64_t targets_of_step = 0;
  for (std::int64_t m = 0; m < spec.micro_batches; ++m) {
    batches.push_back(make_rows(spec, step, m, nn::share_of(spec.sequences, rank, size)));
    nn::Batch& view = batches.back().view;
    const OwnedBatch whole = make_rows(spec, step, m, {0, spec.sequences});
    const auto* targets = whole.view.targets.as<std::int32_t>();
    view.global_targets =
        std::count_if(targets, targets + whole.view.targets.numel(), [](std::int32_t t) { return t >= 0; });
    for (std::int64_t b = 0; b < spec.sequences; ++b)
      view.global_tokens += whole.view.lengths.as<std::int32_t>()[b];
    targets_of_step += view.global_targets;
  }
  for (OwnedBatch& batch : batches) {
    batch.view.global_targets_of_step = targets_of_step;
    batch.view.max_rank_tokens = (spec.sequences + size - 1) / size * spec.seq_len;
    batch.view.micro_batches = spec.micro_batches;
  }
  return batches;
}

std::vector<nn::Batch> views(const std::vector<OwnedBatch>& batches) {
  std::vector<nn::Batch> list;
  for (const OwnedBatch& batch : batches) list.push_back(batch.view);
  return list;
}

TinyModel::TinyModel(const TinySpec& tiny, const nn::Parallel& parallel, bool poison, Device device)
    : TinyModel(tiny, parallel, tiny_slots(tiny, parallel.expert_parallel_size()), poison, device) {}

TinyModel::TinyModel(const TinySpec& tiny, const nn::Parallel& parallel, ExpertSlots slots_in, bool poison,
                     Device device)
    : spec(tiny),
      slots(std::move(slots_in)),
      experts_of_domain(tiny_experts_of_domain(tiny)),
      params(nn::make_params(tiny.config, slots, parallel.expert_rank(), true)),
      batches(tiny_batches(tiny, 0, parallel.world().rank(), parallel.world().size())),
      arena(std::int64_t{1} << 18, poison, device),
      compute(device),
      transfer(device),
      exchange(device),
      parallel_(parallel) {
  nn::check(spec.config, slots.size());
  fill_lively(spec, params);
  params.move_to(device);
}

TinyModel::Result TinyModel::evaluate(const nn::Transformer& model) {
  Result result;
  for (const OwnedBatch& batch : batches) {
    const ArenaScope scope(arena);
    const TensorView losses = arena.tensor(params.accumulator_dtype(), model.head().losses_shape(batch.view));
    const nn::LossReport report = model.evaluate(step, batch.view, spec.balance, losses);
    result.loss += report.loss_sum / static_cast<double>(batch.view.global_targets_of_step);
    result.aux_loss += report.aux_loss;
    result.dropped_picks += report.dropped_picks;
  }
  return result;
}

TinyModel::Result TinyModel::forward_backward(const nn::Transformer& model) {
  params.zero_grads(compute);
  Result result;
  for (const OwnedBatch& batch : batches) {
    const nn::LossReport report = model.forward_backward(step, batch.view, spec.balance);
    result.loss += report.loss_sum / static_cast<double>(batch.view.global_targets_of_step);
    result.aux_loss += report.aux_loss;
    result.dropped_picks += report.dropped_picks;
  }
  return result;
}

void TinyModel::set_logit_bias(std::int64_t slot, double value) {
  const Uuid& uuid = slots.slots()[static_cast<std::size_t>(slot)].uuid;
  const Block& block = *params.find_block(BlockKind::router, uuid);
  for (std::size_t i = 0; i < block.params.size(); ++i) {
    if (!block.params[i].spec.name.ends_with("logit_bias")) continue;
    const TensorView bias = block.part(block.master(), static_cast<std::int32_t>(i));
    copy_convert({&value, DType::f64, Device::cpu, bias.shape}, bias);
  }
}

namespace {

double value_at(ConstTensorView x, std::int64_t i) {
  return x.dtype == DType::f64 ? x.as<double>()[i] : static_cast<double>(x.as<float>()[i]);
}

// Between the last pick and the best of the rest, of every token that is not padding.
double selection_margin(const TinyModel& tiny, std::int64_t layer, const nn::Router::Saved& routing) {
  const nn::ModelConfig& config = tiny.spec.config;
  const std::int64_t experts = tiny.slots.size(), top_k = config.num_experts_per_tok;
  double margin = std::numeric_limits<double>::infinity();
  if (config.routing == nn::Routing::fixed || top_k == experts) return margin;
  for (std::int64_t t = 0; t < routing.picks.dim(0); ++t) {
    if (routing.picks.as<std::int32_t>()[t * top_k] < 0) continue;
    std::vector<double> keys;
    double sum = 0.0;
    for (std::int64_t e = 0; e < experts; ++e) sum += std::exp(value_at(routing.logits, t * experts + e));
    for (std::int64_t e = 0; e < experts; ++e) {
      const double z = value_at(routing.logits, t * experts + e);
      if (!tiny.spec.selection_bias || config.scoring == ops::Scoring::softmax_after_top_k)
        keys.push_back(z);
      else if (config.scoring == ops::Scoring::sigmoid)
        keys.push_back(1.0 / (1.0 + std::exp(-z)));
      else
        keys.push_back(std::exp(z) / sum);
      const ExpertSlot& slot = tiny.slots.slots()[static_cast<std::size_t>(e)];
      keys.back() +=
          value_at(tiny.params.value(tiny.params.find(BlockKind::router, slot.uuid,
                                                      "layers." + std::to_string(layer) + ".selection_bias")),
                   0);
    }
    std::sort(keys.begin(), keys.end(), std::greater<>());
    margin =
        std::min(margin, keys[static_cast<std::size_t>(top_k) - 1] - keys[static_cast<std::size_t>(top_k)]);
  }
  return margin;
}

double relu_margin(const TinyModel& tiny, const nn::MoeLayer::Saved& saved) {
  double margin = std::numeric_limits<double>::infinity();
  if (saved.plan.chunks.size() != 1) return margin;
  std::int64_t at = 0;
  for (const nn::ExpertRows& rows : saved.plan.chunks[0].experts) {
    const ExpertSlot& slot = tiny.slots.slots()[static_cast<std::size_t>(rows.slot)];
    const std::int64_t end = at + (rows.end - rows.begin) * slot.width;
    for (; at < end; ++at)
      if (slot.kind == ExpertKind::adapter)
        margin = std::min(margin, std::fabs(value_at(saved.experts[0].up, at)));
  }
  return margin;
}

}  // namespace

double decision_margin(TinyModel& tiny) {
  const nn::Transformer model = tiny.transformer();
  double margin = std::numeric_limits<double>::infinity();
  for (const OwnedBatch& batch : tiny.batches) {
    const ArenaScope scope(tiny.arena);
    nn::Transformer::Saved saved;
    model.forward(tiny.step, batch.view, saved);
    for (std::size_t l = 0; l < saved.blocks.size(); ++l) {
      const auto layer = static_cast<std::int64_t>(l);
      if (!tiny.spec.config.is_moe_layer(layer)) continue;
      margin = std::min({margin, selection_margin(tiny, layer, saved.blocks[l].moe.routing),
                         relu_margin(tiny, saved.blocks[l].moe)});
    }
  }
  return margin;
}

TinySpec settled(TinySpec spec, double margin) {
  const nn::Parallel single = nn::Parallel::single();
  for (int i = 0; i < 2000; ++i, ++spec.seed) {
    TinyModel tiny(spec, single);
    if (decision_margin(tiny) >= margin) return spec;
  }
  throw std::runtime_error("no seed of " + spec.name + " keeps the margin");
}

std::vector<std::int64_t> rows_per_slot(const nn::DispatchPlan& plan, std::int64_t num_experts) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(num_experts), 0);
  for (const nn::DispatchChunk& chunk : plan.chunks)
    for (const nn::ExpertRows& run : chunk.experts)
      rows[static_cast<std::size_t>(run.slot)] += run.end - run.begin;
  return rows;
}

}  // namespace moecollab::test
