#include "config/ini.hpp"

#include <fmt/format.h>

#include <sstream>

#include "moecollab/core/error.hpp"

namespace moecollab::config {

namespace {

constexpr const char* kBlank = " \t\r";

std::string trimmed(const std::string& s) {
  const std::size_t begin = s.find_first_not_of(kBlank);
  if (begin == std::string::npos) return "";
  return s.substr(begin, s.find_last_not_of(kBlank) - begin + 1);
}

// A comment after a value starts with `#` or `;` behind a blank, so that paths and text may hold both.
std::string without_comment(const std::string& s) {
  for (std::size_t i = 0; i < s.size(); ++i) {
    const bool after_blank = i == 0 || s[i - 1] == ' ' || s[i - 1] == '\t';
    if ((s[i] == '#' || s[i] == ';') && after_blank) return s.substr(0, i);
  }
  return s;
}

// `s` starts with a quote. False when it does not end, or is followed by anything but a comment.
bool read_quoted(const std::string& s, std::string& value) {
  value.clear();
  for (std::size_t i = 1; i < s.size(); ++i) {
    if (s[i] == '"') return trimmed(without_comment(s.substr(i + 1))).empty();
    if (s[i] != '\\') {
      value += s[i];
      continue;
    }
    if (++i == s.size()) return false;
    switch (s[i]) {
      case 'n':
        value += '\n';
        break;
      case 'r':
        value += '\r';
        break;
      case 't':
        value += '\t';
        break;
      case '"':
      case '\\':
        value += s[i];
        break;
      default:
        return false;
    }
  }
  return false;
}

}  // namespace

std::vector<IniEntry> read_ini(const std::string& text, const std::string& source) {
  std::vector<IniEntry> entries;
  std::string prefix, raw;
  std::istringstream lines(text);
  for (int number = 1; std::getline(lines, raw); ++number) {
    if (number == 1 && raw.starts_with("\xef\xbb\xbf")) raw.erase(0, 3);
    const std::string line = trimmed(raw);
    if (line.empty() || line[0] == '#' || line[0] == ';') continue;
    const auto refuse = [&](const char* why) {
      throw UsageError(fmt::format("{}:{}: {}: {}", source, number, why, line));
    };
    if (line[0] == '[') {
      const std::string head = trimmed(without_comment(line));
      if (head.size() < 3 || head.back() != ']') refuse("a section must look like [name]");
      prefix = trimmed(head.substr(1, head.size() - 2)) + ".";
      continue;
    }
    const std::size_t equals = line.find('=');
    const std::string key = trimmed(line.substr(0, equals));
    if (equals == std::string::npos || key.empty()) refuse("a line must look like key = value");
    IniEntry entry{prefix + key, trimmed(line.substr(equals + 1)), number};
    if (entry.value.starts_with('"')) {
      std::string value;
      if (!read_quoted(entry.value, value))
        refuse("a quoted value must end with a quote and knows \\\\ \\\" \\n \\r \\t");
      entry.value = std::move(value);
    } else {
      entry.value = trimmed(without_comment(entry.value));
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

std::string ini_value(const std::string& value) {
  const bool plain = value.find_first_of("#;\"\\\n\r\t") == std::string::npos && trimmed(value) == value;
  if (plain) return value;
  std::string quoted = "\"";
  for (const char c : value) {
    switch (c) {
      case '\n':
        quoted += "\\n";
        break;
      case '\r':
        quoted += "\\r";
        break;
      case '\t':
        quoted += "\\t";
        break;
      case '"':
      case '\\':
        quoted += '\\';
        [[fallthrough]];
      default:
        quoted += c;
    }
  }
  return quoted + '"';
}

}  // namespace moecollab::config
