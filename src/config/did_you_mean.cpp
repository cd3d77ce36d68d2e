#include <algorithm>
#include <numeric>

#include "moecollab/config/options.hpp"

namespace moecollab::config {

namespace {

// Insertions, deletions and replacements that turn `a` into `b` (Levenshtein), one row at a time.
std::size_t edits(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string did_you_mean(const std::string& word, std::span<const std::string> candidates) {
  std::string best;
  std::size_t best_edits = 1 + std::max<std::size_t>(2, word.size() / 3);  // further away is no help
  const auto offer = [&](const std::string& candidate, std::size_t distance) {
    if (distance >= best_edits) return;
    best_edits = distance;
    best = candidate;
  };
  for (const std::string& candidate : candidates) {
    offer(candidate, edits(word, candidate));
    const std::size_t dot = candidate.find('.'), own_dot = word.find('.');
    if (dot == std::string::npos) continue;
    // `--hidden_size` means `--model.hidden_size`, and `--train.lr` means `--optimizer.lr`.
    const std::string key = candidate.substr(dot + 1);
    if (own_dot == std::string::npos)
      offer(candidate, edits(word, key));
    else if (word.substr(own_dot + 1) == key)
      offer(candidate, 1);
  }
  return best;
}

}  // namespace moecollab::config
