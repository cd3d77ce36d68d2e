#include "config/table.hpp"

#include <fmt/format.h>

#include <utility>

#include "config/fields.hpp"

// A callable that returns a reference to the member of Settings, const or not.
#define MC_FIELD(member) \
  [](auto& s) -> auto& { return s.member; }

namespace moecollab::config {

namespace {

constexpr unsigned bit(Verb verb) { return 1U << static_cast<unsigned>(verb); }
constexpr unsigned kTrain = bit(Verb::train), kExpert = bit(Verb::expert_train),
                   kAssemble = bit(Verb::assemble), kEval = bit(Verb::eval), kGenerate = bit(Verb::generate),
                   kSelftest = bit(Verb::selftest);
constexpr unsigned kLearns = kTrain | kExpert;         // takes training steps
constexpr unsigned kReads = kTrain | kExpert | kEval;  // reads a token file
constexpr unsigned kRuns = kReads | kGenerate;         // runs the model
constexpr unsigned kAll = kRuns | kAssemble | kSelftest;

Option required(Option option, unsigned by) {
  option.required_by = by;
  return option;
}

Option alias(Option option, std::string name) {
  option.alias = std::move(name);
  return option;
}

// May differ from the checkpoint's without making its weights meaningless.
Option use(Option option) {
  option.changes = Changes::use;
  return option;
}

// 0: what the data says.
Option from_data(Option option) {
  option.changes = Changes::from_data;
  return option;
}

void add(std::vector<Option>& table, std::vector<Option> more) {
  for (Option& option : more) table.push_back(std::move(option));
}

std::vector<Option> command_options() {
  Option json = yes_no("json", "Print the result as one JSON object", kEval, MC_FIELD(json));
  json.takes = Takes::nothing;
  return {
      one_of<DeviceChoice>(
          "device", "Where the model runs", kAll, MC_FIELD(device),
          {{"auto", DeviceChoice::automatic}, {"cpu", DeviceChoice::cpu}, {"cuda", DeviceChoice::cuda}}),
      required(text("anchor", "DIR", "Checkpoint that contributed experts start from", kExpert | kAssemble,
                    MC_FIELD(anchor)),
               kExpert | kAssemble),
      required(texts("shards", "FILE...", "Contributed experts to join to the anchor", kAssemble,
                     MC_FIELD(shards)),
               kAssemble),
      required(text("out", "PATH",
                    "What is written: the folder for the expert's shard, or the assembled checkpoint",
                    kExpert | kAssemble, MC_FIELD(out)),
               kExpert | kAssemble),
      required(
          texts("checkpoint", "[NAME=]DIR...",
                "Checkpoints to read: a step's folder, or a run (its newest step); eval compares several",
                kEval | kGenerate, MC_FIELD(checkpoints)),
          kEval | kGenerate),
      texts("without", "EXPERT...", "Experts to leave out, by name or UUID", kEval | kGenerate,
            MC_FIELD(without)),
      std::move(json),
      text("prompt", "TEXT", "Text to continue; empty: from the start of a document", kGenerate,
           MC_FIELD(sampling.prompt)),
      number("tokens", "Tokens to generate", kGenerate, MC_FIELD(sampling.tokens), {1, INT64_MAX}),
      number("temperature", "Divides the logits before sampling; 0: always the most likely token", kGenerate,
             MC_FIELD(sampling.temperature), {0.0, 1e6}),
      number("top-p", "Sample from the smallest set of tokens with this much probability", kGenerate,
             MC_FIELD(sampling.top_p), {0.0, 1.0}),
      number("seed", "Key of the random numbers of sampling", kGenerate, MC_FIELD(sampling.seed)),
  };
}

Option domain_weights() {
  Option o;
  o.name = "data.domain_weights";
  o.metavar = "NAME=W,...";
  o.help = "How often each domain is drawn; empty: by its number of tokens";
  o.verbs = kLearns;
  o.allowed = "NAME=WEIGHT,NAME=WEIGHT,... with finite weights of at least 0, each name once";
  o.get = [](const Settings& s) {
    std::string all;
    for (const DomainWeight& w : s.data.domain_weights)
      all += fmt::format("{}{}={}", all.empty() ? "" : ",", w.domain, w.weight);
    return Texts{all};
  };
  o.set = [](Settings& s, const Texts& texts) {
    std::vector<DomainWeight> weights;
    const std::string& all = texts.at(0);
    for (std::size_t begin = 0; begin < all.size();) {
      const std::size_t end = std::min(all.find(',', begin), all.size());
      const std::string entry = all.substr(begin, end - begin);
      const std::size_t equals = entry.rfind('=');
      DomainWeight w;
      if (equals == std::string::npos || equals == 0 || !read_number(entry.substr(equals + 1), w.weight) ||
          !std::isfinite(w.weight) || w.weight < 0.0)
        return false;
      w.domain = entry.substr(0, equals);
      for (const DomainWeight& other : weights)
        if (other.domain == w.domain) return false;
      weights.push_back(std::move(w));
      begin = end + 1;
      if (begin == all.size()) return false;  // a comma with nothing behind it
    }
    s.data.domain_weights = std::move(weights);
    return true;
  };
  return o;
}

std::vector<Option> run_options() {
  return {
      alias(required(text("run.dir", "DIR",
                          "Folder of the run: checkpoints, metrics, resolved config; resumes when it holds a "
                          "checkpoint (expert train: by default OUT/run)",
                          kLearns, MC_FIELD(run.dir)),
                     kTrain),
            "run"),
      alias(text("run.init", "DIR", "Checkpoint a new run starts from; empty: fresh weights", kTrain,
                 MC_FIELD(run.init)),
            "init"),
      alias(required(text("data.path", "FILE", "Tokens, as moecollab-prepare writes them", kReads,
                          MC_FIELD(data.path)),
                     kReads),
            "data"),
      domain_weights(),
  };
}

std::vector<Option> model_shape_options() {
  return {
      from_data(number("model.vocab_size", "V; 0: that of the data's tokenizer", kTrain,
                       MC_FIELD(model.vocab_size))),
      number("model.hidden_size", "D, the model width", kTrain, MC_FIELD(model.hidden_size)),
      number("model.num_hidden_layers", "L", kTrain, MC_FIELD(model.num_hidden_layers)),
      number("model.num_attention_heads", "H, query heads", kTrain, MC_FIELD(model.num_attention_heads)),
      number("model.num_key_value_heads", "Key and value heads; divides H", kTrain,
             MC_FIELD(model.num_key_value_heads)),
      number("model.head_dim", "Width of a head; even", kTrain, MC_FIELD(model.head_dim)),
      use(number("model.max_position_embeddings", "Longest sequence", kRuns,
                 MC_FIELD(model.max_position_embeddings))),
      number("model.rms_norm_eps", "Epsilon of the norms", kTrain, MC_FIELD(model.rms_norm_eps)),
      number("model.rope_theta", "Base of the rotary embedding", kTrain, MC_FIELD(model.rope_theta)),
      number("model.initializer_range", "Standard deviation of fresh weights", kTrain,
             MC_FIELD(model.initializer_range)),
      yes_no("model.tie_word_embeddings", "One matrix for embedding and head", kTrain,
             MC_FIELD(model.tie_word_embeddings)),
      yes_no("model.use_qk_norm", "RMSNorm on queries and keys", kTrain, MC_FIELD(model.use_qk_norm)),
      yes_no("model.causal", "A token sees only those before it", kTrain, MC_FIELD(model.causal)),
      use(one_of<DType>("model.dtype", "Compute type; f64 is slow, for checks", kRuns, MC_FIELD(model.dtype),
                        {{"f32", DType::f32}, {"bf16", DType::bf16}, {"f64", DType::f64}})),
      one_of<nn::Head>("model.head", "What the model predicts", kTrain, MC_FIELD(model.head),
                       {{nn::to_string(nn::Head::lm), nn::Head::lm},
                        {nn::to_string(nn::Head::classifier), nn::Head::classifier}}),
      from_data(number("model.num_labels", "Classes of a classifier head; 0: as many labels as the data has",
                       kTrain, MC_FIELD(model.num_labels))),
  };
}

std::vector<Option> model_moe_options() {
  using nn::Routing;
  using ops::Scoring;
  const auto scoring = [](Scoring s) { return std::pair<std::string, Scoring>(nn::to_string(s), s); };
  const auto routing = [](Routing r) { return std::pair<std::string, Routing>(nn::to_string(r), r); };
  return {
      number("model.intermediate_size", "F of the dense layers", kTrain, MC_FIELD(model.intermediate_size)),
      number("model.decoder_sparse_step", "Every n-th layer has experts; 0: none", kTrain,
             MC_FIELD(model.decoder_sparse_step)),
      number("model.shared_expert_intermediate_size", "F of the always-on shared expert; 0: none", kTrain,
             MC_FIELD(model.shared_expert_intermediate_size)),
      use(number("model.num_experts_per_tok", "K, picks per token", kRuns,
                 MC_FIELD(model.num_experts_per_tok))),
      one_of<Scoring>("model.scoring", "How the gate scores experts", kTrain, MC_FIELD(model.scoring),
                      {scoring(Scoring::softmax_before_top_k), scoring(Scoring::softmax_after_top_k),
                       scoring(Scoring::sigmoid)}),
      yes_no("model.norm_topk_prob", "Divide the picked scores by their sum", kTrain,
             MC_FIELD(model.norm_topk_prob)),
      number("model.routed_scaling_factor", "Factor on the combine weights", kTrain,
             MC_FIELD(model.routed_scaling_factor)),
      use(one_of<Routing>("model.routing", "Who chooses experts", kRuns, MC_FIELD(model.routing),
                          {routing(Routing::token), routing(Routing::document), routing(Routing::fixed)})),
      use(number("model.capacity_factor", "Picks an expert takes / its fair share; 0: all, none is dropped",
                 kRuns, MC_FIELD(model.capacity_factor))),
      use(number("model.max_rows", "Rows an MoE layer holds at once on a rank; above it, chunks; 0: no limit",
                 kRuns, MC_FIELD(model.max_rows))),
  };
}

std::vector<Option> expert_options() {
  return {
      number("expert.num_experts", "E, experts the model is born with", kTrain, MC_FIELD(expert.num_experts)),
      one_of<ExpertKind>("expert.kind", "Form of a new expert", kLearns, MC_FIELD(expert.kind),
                         {{to_string(ExpertKind::swiglu), ExpertKind::swiglu},
                          {to_string(ExpertKind::adapter), ExpertKind::adapter}}),
      alias(number("expert.moe_intermediate_size", "F of a new expert, or the rank of an adapter", kLearns,
                   MC_FIELD(expert.moe_intermediate_size)),
            "expert.width"),
      required(text("expert.name", "NAME", "What people call the contributed expert", kExpert,
                    MC_FIELD(contributor.name)),
               kExpert),
      required(text("expert.owner", "NAME", "Who contributes it", kExpert, MC_FIELD(contributor.owner)),
               kExpert),
      required(text("expert.domain", "NAME", "What it knows about", kExpert, MC_FIELD(contributor.domain)),
               kExpert),
  };
}

std::vector<Option> train_options() {
  using train::Trainable;
  return {
      number("train.steps", "Optimizer steps", kLearns, MC_FIELD(train.steps)),
      number("train.batch_size", "Sequences per step, over all ranks", kReads, MC_FIELD(train.batch_size)),
      number("train.micro_batches", "Parts a batch is cut into; divides batch_size", kLearns,
             MC_FIELD(train.micro_batches)),
      number("train.seq_len", "S, tokens per sequence", kReads, MC_FIELD(train.seq_len)),
      number("train.seed", "Key of weights and data order", kLearns, MC_FIELD(train.seed)),
      one_of<Trainable>("train.trainable", "What learns: everything, or the gate alone", kTrain,
                        MC_FIELD(train.trainable),
                        {{train::to_string(Trainable::all), Trainable::all},
                         {train::to_string(Trainable::router), Trainable::router}}),
      number("train.expert_parallel", "Ranks a set of experts is spread over; 0: all", kReads,
             MC_FIELD(train.expert_parallel)),
      number("train.eval_every", "Steps between evaluations; 0: only at the end", kLearns,
             MC_FIELD(train.eval_every)),
      number("train.eval_sequences", "Sequences per domain in an evaluation", kReads,
             MC_FIELD(train.eval_sequences)),
      number("train.checkpoint_every", "Steps between checkpoints; 0: only at the end", kLearns,
             MC_FIELD(train.checkpoint_every)),
      number("train.keep_checkpoints", "How many of the newest checkpoints are kept", kLearns,
             MC_FIELD(train.keep_checkpoints)),
      number("train.log_every_s", "Least seconds between progress lines", kLearns,
             MC_FIELD(train.log_every_s)),
      number("train.threads", "Threads per rank; 0: cores / ranks on this host", kAll,
             MC_FIELD(train.threads)),
      number(
          "train.overlap_chunks",
          "Parts in which a layer's rows travel between ranks while its experts work (CUDA); 1: no overlap",
          kLearns, MC_FIELD(train.overlap_chunks)),
      number("train.selection_bias_rate", "Step of the selection bias (balancing without a loss); 0: off",
             kLearns, MC_FIELD(train.selection_bias_rate)),
      number("balance.balance", "Weight of the load balancing loss", kLearns,
             MC_FIELD(train.balance.balance)),
      number("balance.z_loss", "Weight of the squared log-sum-exp of the gate", kLearns,
             MC_FIELD(train.balance.z_loss)),
      number("balance.token_entropy", "l_t in l_t H_tok - l_b H_bat; above 0: each token decides sharply",
             kLearns, MC_FIELD(train.balance.token_entropy)),
      number("balance.batch_entropy", "l_b in l_t H_tok - l_b H_bat; above 0: all experts are used", kLearns,
             MC_FIELD(train.balance.batch_entropy)),
  };
}

std::vector<Option> optimizer_options() {
  using train::Schedule;
  const auto schedule = [](Schedule s) { return std::pair<std::string, Schedule>(train::to_string(s), s); };
  return {
      number("optimizer.lr", "Peak learning rate", kLearns, MC_FIELD(train.optimizer.lr)),
      number("optimizer.min_lr_ratio", "Final learning rate / peak", kLearns,
             MC_FIELD(train.optimizer.min_lr_ratio)),
      number("optimizer.warmup_steps", "Steps of linear warm-up", kLearns,
             MC_FIELD(train.optimizer.warmup_steps)),
      one_of<Schedule>("optimizer.schedule", "Course of the learning rate after warm-up", kLearns,
                       MC_FIELD(train.optimizer.schedule),
                       {schedule(Schedule::constant), schedule(Schedule::cosine), schedule(Schedule::wsd)}),
      number("optimizer.decay_steps", "wsd: last steps, in which the rate falls; 0: a fifth of all", kLearns,
             MC_FIELD(train.optimizer.decay_steps)),
      number("optimizer.beta1", "AdamW: decay of the first moment", kLearns, MC_FIELD(train.optimizer.beta1)),
      number("optimizer.beta2", "AdamW: decay of the second moment", kLearns,
             MC_FIELD(train.optimizer.beta2)),
      number("optimizer.eps", "AdamW: added to the denominator", kLearns, MC_FIELD(train.optimizer.eps)),
      number("optimizer.weight_decay", "AdamW: decay of matrices", kLearns,
             MC_FIELD(train.optimizer.weight_decay)),
      number("optimizer.clip_norm", "Global gradient norm; 0: no clipping", kLearns,
             MC_FIELD(train.optimizer.clip_norm)),
  };
}

std::vector<Option> make_table() {
  std::vector<Option> table = command_options();
  add(table, run_options());
  add(table, model_shape_options());
  add(table, model_moe_options());
  add(table, expert_options());
  add(table, train_options());
  add(table, optimizer_options());
  return table;
}

}  // namespace

std::string Option::section() const {
  const std::size_t dot = name.find('.');
  return dot == std::string::npos ? "" : name.substr(0, dot);
}

std::string Option::key() const {
  const std::size_t dot = name.find('.');
  return dot == std::string::npos ? name : name.substr(dot + 1);
}

std::span<const Option> option_table() {
  static const std::vector<Option> kTable = make_table();
  return kTable;
}

const Option* find_option(const std::string& name) {
  for (const Option& option : option_table())
    if (option.name == name || (!option.alias.empty() && option.alias == name)) return &option;
  return nullptr;
}

std::vector<OptionInfo> list_options() {
  const Settings defaults;
  std::vector<OptionInfo> all;
  for (const Option& option : option_table()) {
    OptionInfo info{option.name, fmt::format("{}", fmt::join(option.get(defaults), " ")), {}};
    for (const VerbInfo& verb : verbs())
      if (option.belongs_to(verb.verb)) info.verbs.emplace_back(verb.name);
    all.push_back(std::move(info));
  }
  return all;
}

}  // namespace moecollab::config
