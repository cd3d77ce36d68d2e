#include "golden/golden_case.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <stdexcept>

#include "moecollab/core/device.hpp"

namespace moecollab::golden {

GoldenCase::GoldenCase(const std::string& name)
    : file_(h5::File::open_read(MOECOLLAB_GOLDEN_DIR "/golden_" + name + ".h5")) {
  std::istringstream lines(file_.attribute_string("/", "config"));
  for (std::string line; std::getline(lines, line);) {
    const std::size_t equals = line.find('=');
    config_[line.substr(0, equals)] = line.substr(equals + 1);
  }
}

const std::string& GoldenCase::text(const std::string& key) const {
  const auto found = config_.find(key);
  if (found == config_.end()) throw std::runtime_error(file_.path() + ": no config key " + key);
  return found->second;
}

nn::ModelConfig GoldenCase::model_config(DType dtype) const {
  nn::ModelConfig c;
  c.vocab_size = integer("vocab_size");
  c.hidden_size = integer("hidden_size");
  c.num_hidden_layers = integer("num_hidden_layers");
  c.num_attention_heads = integer("num_attention_heads");
  c.num_key_value_heads = integer("num_key_value_heads");
  c.head_dim = integer("head_dim");
  c.max_position_embeddings = integer("seq_len");
  c.rms_norm_eps = real("rms_norm_eps");
  c.rope_theta = real("rope_theta");
  c.tie_word_embeddings = flag("tie_word_embeddings");
  c.use_qk_norm = flag("use_qk_norm");
  c.causal = flag("causal");
  c.dtype = dtype;
  c.intermediate_size = integer("intermediate_size");
  c.decoder_sparse_step = integer("decoder_sparse_step");
  c.shared_expert_intermediate_size = integer("shared_expert_intermediate_size");
  c.num_experts_per_tok = integer("num_experts_per_tok");
  c.scoring = nn::scoring_from_string(text("scoring"));
  c.norm_topk_prob = flag("norm_topk_prob");
  c.routed_scaling_factor = real("routed_scaling_factor");
  c.routing = nn::routing_from_string(text("routing"));
  c.head = nn::head_from_string(text("head"));
  c.num_labels = integer("num_labels");
  return c;
}

train::TrainConfig GoldenCase::train_config() const {
  train::TrainConfig c;
  c.steps = integer("steps");
  c.batch_size = integer("batch_size");
  c.micro_batches = integer("micro_batches");
  c.seq_len = integer("seq_len");
  c.selection_bias_rate = real("selection_bias_rate");
  c.balance = {real("balance"), real("z_loss"), real("token_entropy"), real("batch_entropy")};
  train::OptimizerConfig& o = c.optimizer;
  o.lr = real("lr");
  o.min_lr_ratio = real("min_lr_ratio");
  o.warmup_steps = integer("warmup_steps");
  o.schedule = train::schedule_from_string(text("schedule"));
  o.decay_steps = integer("decay_steps");
  o.beta1 = real("beta1");
  o.beta2 = real("beta2");
  o.eps = real("eps");
  o.weight_decay = real("weight_decay");
  o.clip_norm = real("clip_norm");
  return c;
}

ExpertSlots GoldenCase::slots() const {
  ExpertSlots slots(1);
  std::istringstream experts(text("experts"));
  for (std::string entry; std::getline(experts, entry, ',');) {
    const std::size_t colon = entry.find(':');
    ExpertSlot slot;
    slot.uuid = Uuid::from_seed(1, static_cast<std::uint64_t>(slots.size()));
    slot.name = "expert-" + std::to_string(slots.size());
    slot.kind = expert_kind_from_string(entry.substr(0, colon));
    slot.width = std::stoll(entry.substr(colon + 1));
    slots.insert(slot);
  }
  return slots;
}

std::string GoldenCase::block_name(const ExpertSlots& slots, const Block& block) const {
  if (block.kind == BlockKind::trunk) return "trunk";
  const auto all = slots.slots();
  const auto slot =
      std::find_if(all.begin(), all.end(), [&](const ExpertSlot& s) { return s.uuid == block.uuid; });
  return std::string(block.kind == BlockKind::router ? "router." : "expert.") +
         std::to_string(slot - all.begin());
}

void GoldenCase::load_initial(const ExpertSlots& slots, ParamStore& params) const {
  ASSERT_EQ(params.blocks().size(), file_.list("init").size())
      << "blocks of the store and of " << file_.path();
  for (const Block& block : params.blocks()) {
    const std::string group = "init/" + block_name(slots, block);
    ASSERT_EQ(block.params.size(), file_.list(group).size()) << "parameters of " << group;
    for (std::size_t i = 0; i < block.params.size(); ++i) {
      const Tensor value = file_.read(group + "/" + block.params[i].spec.name);
      ASSERT_EQ(value.shape(), block.params[i].spec.shape) << group << "/" << block.params[i].spec.name;
      copy_convert(value.view(), block.part(block.master(), static_cast<std::int32_t>(i)));
    }
    params.refresh_value(block.id);
  }
}

namespace {

// Rows [begin, begin + count) of step s of a [steps, sequences(, S)] tensor, as i32.
Tensor integers(const Tensor& all, std::int64_t step, std::int64_t begin, std::int64_t count) {
  const Shape& shape = all.shape();
  const std::int64_t row = shape.rank() == 3 ? shape[2] : 1;
  Tensor out(DType::i32, shape.rank() == 3 ? Shape{count, row} : Shape{count});
  const double* from = all.view().as<double>() + (step * shape[1] + begin) * row;
  std::transform(from, from + count * row, out.view().as<std::int32_t>(),
                 [](double x) { return static_cast<std::int32_t>(x); });
  return out;
}

}  // namespace

std::vector<OwnedBatch> GoldenCase::micro_batches(std::int64_t step) const {
  const std::int64_t count = integer("micro_batches"), share = integer("batch_size") / count;
  std::vector<OwnedBatch> batches;
  std::int64_t targets_of_step = 0;
  for (std::int64_t m = 0; m < count; ++m) {
    const auto part = [&](const char* name) {
      return integers(file_.read(std::string("batch/") + name), step, m * share, share);
    };
    OwnedBatch b{part("tokens"), part("targets"), part("lengths"), part("segments"), part("domains"), {}};
    b.view = {b.tokens.view(), b.targets.view(), b.lengths.view(), b.segments.view(), b.domains.view()};
    const auto* targets = b.targets.view().as<std::int32_t>();
    b.view.global_targets =
        std::count_if(targets, targets + b.targets.shape().numel(), [](std::int32_t t) { return t >= 0; });
    const auto* lengths = b.lengths.view().as<std::int32_t>();
    for (std::int64_t i = 0; i < share; ++i) b.view.global_tokens += lengths[i];
    b.view.micro_batches = count;
    targets_of_step += b.view.global_targets;
    batches.push_back(std::move(b));
  }
  for (OwnedBatch& b : batches) b.view.global_targets_of_step = targets_of_step;
  return batches;
}

double relative_difference(ConstTensorView anywhere, ConstTensorView want, double floor) {
  Tensor storage;
  const ConstTensorView have = on_host(anywhere, storage);
  if (have.numel() != want.numel()) throw std::runtime_error("tensors of different sizes");
  const auto value = [&](std::int64_t i) {
    if (have.dtype == DType::f64) return have.as<double>()[i];
    if (have.dtype == DType::f32) return static_cast<double>(have.as<float>()[i]);
    return static_cast<double>(have.as<std::int32_t>()[i]);
  };
  double difference = 0.0, size = floor;
  for (std::int64_t i = 0; i < have.numel(); ++i) {
    const double w = want.as<double>()[i], d = std::abs(value(i) - w);
    if (!(d <= difference)) difference = std::isnan(d) ? INFINITY : d;
    size = std::max(size, std::abs(w));
  }
  return difference == 0.0 ? 0.0 : difference / size;
}

}  // namespace moecollab::golden
