// INI text: `[section]` lines, `key = value` lines, `#` or `;` comments. Read here rather than by a library,
// for the line numbers in error messages and for values that hold `#`, quotes or line breaks.
#pragma once

#include <string>
#include <vector>

namespace moecollab::config {

struct IniEntry {
  std::string name;  // "section.key", or "key" outside of sections
  std::string value;
  int line = 0;
};

// `source` names the text in errors. Throws UsageError naming source and line.
std::vector<IniEntry> read_ini(const std::string& text, const std::string& source);

// `value` as it must be written to be read back exactly: quoted where it has to be.
std::string ini_value(const std::string& value);

}  // namespace moecollab::config
