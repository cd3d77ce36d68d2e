#include "app/score_tables.hpp"

#include <algorithm>

namespace moecollab::app {

namespace {
const train::DomainScore* find_domain(const train::Scores& scores, const std::string& domain) {
  const auto at = std::find_if(scores.domains.begin(), scores.domains.end(),
                               [&](const train::DomainScore& score) { return score.domain == domain; });
  return at == scores.domains.end() ? nullptr : &*at;
}
}  // namespace

report::Table quality_table(const std::vector<NamedScores>& models) {
  const bool lm = std::any_of(models.at(0).scores.domains.begin(), models.at(0).scores.domains.end(),
                              [](const train::DomainScore& score) { return score.bytes > 0; });
  std::vector<std::string> header = {lm ? "bits per byte" : "accuracy % / macro-F1 %"};
  for (const NamedScores& model : models) header.push_back(model.name);
  report::Table table(header);
  for (const train::DomainScore& row : models.at(0).scores.domains) {
    std::vector<std::string> cells = {row.domain};
    for (const NamedScores& model : models) {
      const train::DomainScore* score = find_domain(model.scores, row.domain);
      cells.push_back(score == nullptr ? "-"
                      : lm             ? report::fixed(score->bits_per_byte, 3)
                                       : report::fixed(100.0 * score->accuracy, 1) + " / " +
                                 report::fixed(100.0 * score->macro_f1, 1));
    }
    table.add_row(cells);
  }
  return table;
}

report::Table routing_table(const train::Scores& scores, const ExpertSlots& slots) {
  std::vector<std::string> header = {"picks in %"};
  for (const ExpertSlot& slot : slots.slots()) header.push_back(slot.name);
  report::Table table(header);
  for (const train::DomainScore& score : scores.domains) {
    double all = 0.0;
    for (const std::int64_t picks : score.picks) all += static_cast<double>(picks);
    std::vector<std::string> cells = {score.domain};
    for (const std::int64_t picks : score.picks)
      cells.push_back(report::fixed(all > 0.0 ? 100.0 * static_cast<double>(picks) / all : 0.0, 1));
    table.add_row(cells);
  }
  return table;
}

report::Table entropy_table(const std::vector<NamedScores>& models) {
  report::Table table({"routing", "H_tok", "H_bat", "utilisation"});
  for (const NamedScores& model : models)
    table.add_row({model.name, report::fixed(model.scores.token_entropy, 3),
                   report::fixed(model.scores.batch_entropy, 3), report::fixed(model.scores.utilisation, 3)});
  return table;
}

}  // namespace moecollab::app
