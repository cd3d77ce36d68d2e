// Small tables for people: aligned plain text, or Markdown. The first column is aligned left, the others
// right.
#pragma once

#include <string>
#include <vector>

namespace moecollab::report {

class Table {
 public:
  explicit Table(std::vector<std::string> header);
  // As many cells as the header has. Throws InternalError.
  void add_row(std::vector<std::string> cells);

  std::string to_text() const;      // header, rule, rows
  std::string to_markdown() const;  // `|` in a cell is escaped

 private:
  std::vector<std::vector<std::string>> rows_;  // [0] is the header
};

// `value` with `digits` after the point; "-" when not finite.
std::string fixed(double value, int digits);

}  // namespace moecollab::report
