#include "moecollab/report/record.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>

namespace moecollab::report {

namespace {

void append(std::string& out, double value) {
  if (std::isfinite(value))
    fmt::format_to(std::back_inserter(out), "{}", value);
  else
    out += "null";
}

void append(std::string& out, std::int64_t value) { fmt::format_to(std::back_inserter(out), "{}", value); }

void append(std::string& out, const std::string& value) {
  out += '"';
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  out += '"';
}

template <class T>
void append(std::string& out, const std::vector<T>& values) {
  out += '[';
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i > 0) out += ", ";
    append(out, values[i]);
  }
  out += ']';
}

}  // namespace

Record& Record::put(const std::string& key, Value value) {
  for (auto& [name, old] : fields_) {
    if (name != key) continue;
    old = std::move(value);
    return *this;
  }
  fields_.emplace_back(key, std::move(value));
  return *this;
}

Record& Record::set(const std::string& key, double value) { return put(key, value); }
Record& Record::set(const std::string& key, std::int64_t value) { return put(key, value); }
Record& Record::set(const std::string& key, const std::string& value) { return put(key, value); }
Record& Record::set(const std::string& key, std::vector<double> values) {
  return put(key, std::move(values));
}
Record& Record::set(const std::string& key, std::vector<std::int64_t> values) {
  return put(key, std::move(values));
}

Record& Record::set_phases_ms(const std::array<double, kNumPhases>& ms) {
  for (std::size_t i = 0; i < kNumPhases; ++i)
    set(std::string(to_string(static_cast<Phase>(i))) + "_ms", ms[i]);
  return *this;
}

std::string Record::to_json() const {
  std::string out = "{";
  for (const auto& [key, value] : fields_) {
    if (out.size() > 1) out += ", ";
    append(out, key);
    out += ": ";
    std::visit([&out](const auto& v) { append(out, v); }, value);
  }
  return out + '}';
}

}  // namespace moecollab::report
