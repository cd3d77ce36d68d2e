#include "app/training_log.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iostream>

#include "app/score_tables.hpp"
#include "moecollab/report/metrics_writer.hpp"
#include "moecollab/report/progress_line.hpp"
#include "moecollab/report/routing_health.hpp"

namespace moecollab::app {

namespace {
double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace

struct TrainingLog::Impl {
  Impl(const config::Settings& settings, const ExpertSlots& slots_in, std::int64_t resumed_step)
      : slots(slots_in),
        metrics(settings.run.dir + "/metrics.jsonl", resumed_step),
        progress(std::cout,
                 {resumed_step + 1, settings.train.steps, settings.train.log_every_s,
                  report::wants_bar(STDOUT_FILENO), report::wants_color(STDOUT_FILENO)},
                 now_s()) {}

  const ExpertSlots& slots;
  report::MetricsWriter metrics;
  report::ProgressLine progress;
};

TrainingLog::TrainingLog(const config::Settings& settings, const ExpertSlots& slots, int rank,
                         std::int64_t resumed_step)
    : impl_(rank == 0 ? std::make_unique<Impl>(settings, slots, resumed_step) : nullptr) {}
TrainingLog::~TrainingLog() = default;

void TrainingLog::say(const std::string& line) {
  if (impl_) impl_->progress.note(line);
}

void TrainingLog::step(const train::StepReport& report, double step_ms,
                       const std::array<double, kNumPhases>& phases_ms) {
  if (!impl_) return;
  // Health per layer; the worst layer is what a reader must see, the mean what they compare.
  const auto num_experts = static_cast<std::size_t>(std::max<std::int64_t>(impl_->slots.size(), 1));
  double utilisation = 0.0, max_mean_load = 0.0;
  std::int64_t dead_experts = 0;
  const std::size_t layers = report.picks.size() / num_experts;
  for (std::size_t l = 0; l < layers; ++l) {
    const report::RoutingHealth health =
        report::routing_health(std::span(report.picks).subspan(l * num_experts, num_experts));
    utilisation += health.utilisation / static_cast<double>(layers);
    max_mean_load = std::max(max_mean_load, health.max_mean_load);
    dead_experts += health.dead_experts;
  }
  const double tokens_per_s = static_cast<double>(report.tokens) / (step_ms * 1e-3);
  report::Record record;
  record.set("loss", report.loss)
      .set("aux_loss", report.aux_loss)
      .set("lr", report.learning_rate)
      .set("grad_norm", report.grad_norm)
      .set("tokens", report.tokens)
      .set("tokens_per_s", tokens_per_s)
      .set("step_ms", step_ms)
      .set_phases_ms(phases_ms)
      .set("h_tok", report.token_entropy)
      .set("h_bat", report.batch_entropy)
      .set("utilisation", utilisation)
      .set("max_mean_load", max_mean_load)
      .set("dead_experts", dead_experts)
      .set("dropped_picks", report.dropped_picks)
      .set("picks", report.picks);
  impl_->metrics.write(report.step, record);
  impl_->progress.step(report.step, now_s(),
                       {report.loss, tokens_per_s, report.learning_rate, report.grad_norm});
}

void TrainingLog::saved(const std::string& directory, double save_ms) {
  say(fmt::format("saved {} in {:.0f} ms", directory, save_ms));
}

void TrainingLog::evaluation(std::int64_t step, const train::Scores& scores) {
  if (!impl_) return;
  if (scores.domains.empty()) return say("eval  nothing to score: the data has no held-out text");
  report::Record record;
  std::string line = "eval";
  for (const train::DomainScore& score : scores.domains) {
    const bool lm = score.bytes > 0;
    record.set("loss." + score.domain, score.loss);
    if (lm) {
      record.set("bits_per_byte." + score.domain, score.bits_per_byte);
    } else {
      record.set("accuracy." + score.domain, score.accuracy);
      record.set("macro_f1." + score.domain, score.macro_f1);
    }
    line += lm ? fmt::format("  {} {:.3f} bits/byte", score.domain, score.bits_per_byte)
               : fmt::format("  {} {:.1f} % right", score.domain, 100.0 * score.accuracy);
  }
  record.set("eval_h_tok", scores.token_entropy)
      .set("eval_h_bat", scores.batch_entropy)
      .set("eval_utilisation", scores.utilisation);
  impl_->metrics.write(step, record);
  impl_->progress.note(line);
}

void TrainingLog::tables(const train::Scores& scores) {
  if (!impl_ || scores.domains.empty()) return;
  std::cout << '\n' << quality_table({{"now", scores}}).to_text() << '\n';
  if (impl_->slots.size() > 1) std::cout << routing_table(scores, impl_->slots).to_text() << '\n';
  std::cout << std::flush;
}

}  // namespace moecollab::app
