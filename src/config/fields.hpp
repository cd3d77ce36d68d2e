// Builders for the rows of the option table, one per type of field. A field is given as a callable that
// returns a reference into Settings, const or not.
#pragma once

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "config/table.hpp"

namespace moecollab::config {

template <class T>
bool read_number(const std::string& text, T& value) {
  const char* end = text.data() + text.size();
  T parsed{};
  const auto [stop, error] = std::from_chars(text.data(), end, parsed);
  if (error != std::errc{} || stop != end || text.empty()) return false;
  value = parsed;
  return true;
}

template <class T>
struct Range {
  T least = std::numeric_limits<T>::lowest(), most = std::numeric_limits<T>::max();
};

// std::int64_t, std::uint64_t or double. The text form of a double is the shortest that reads back exactly.
template <class Field>
Option number(std::string name, std::string help, unsigned verbs, Field field,
              Range<std::remove_cvref_t<std::invoke_result_t<Field, Settings&>>> range = {}) {
  using T = std::remove_cvref_t<std::invoke_result_t<Field, Settings&>>;
  Option o;
  o.name = std::move(name);
  o.metavar = std::is_floating_point_v<T> ? "X" : "N";
  o.help = std::move(help);
  o.verbs = verbs;
  o.allowed = std::is_floating_point_v<T> ? "a finite number" : "an integer";
  const Range<T> any;
  if (range.least != any.least && range.most != any.most)
    o.allowed += fmt::format(" in [{}, {}]", range.least, range.most);
  else if (range.least != any.least)
    o.allowed += fmt::format(" of at least {}", range.least);
  else if (std::is_unsigned_v<T>)
    o.allowed += " of at least 0";
  o.get = [field](const Settings& s) { return Texts{fmt::format("{}", field(s))}; };
  o.set = [field, range](Settings& s, const Texts& texts) {
    T value{};
    if (!read_number(texts.at(0), value)) return false;
    if constexpr (std::is_floating_point_v<T>) {
      if (!std::isfinite(value)) return false;
    }
    if (value < range.least || value > range.most) return false;
    field(s) = value;
    return true;
  };
  return o;
}

// A closed set of values, each with a name.
template <class T, class Field>
Option one_of(std::string name, std::string help, unsigned verbs, Field field,
              std::vector<std::pair<std::string, T>> values) {
  Option o;
  o.name = std::move(name);
  o.help = std::move(help);
  o.verbs = verbs;
  for (const auto& [text, value] : values) {
    o.metavar += (o.metavar.empty() ? "" : "|") + text;
    o.allowed += (o.allowed.empty() ? "one of " : ", ") + text;
  }
  o.get = [field, values](const Settings& s) {
    for (const auto& [text, value] : values)
      if (value == field(s)) return Texts{text};
    return Texts{"?"};
  };
  o.set = [field, values](Settings& s, const Texts& texts) {
    for (const auto& [text, value] : values) {
      if (text != texts.at(0)) continue;
      field(s) = value;
      return true;
    }
    return false;
  };
  return o;
}

template <class Field>
Option yes_no(std::string name, std::string help, unsigned verbs, Field field) {
  return one_of<bool>(std::move(name), std::move(help), verbs, field, {{"true", true}, {"false", false}});
}

template <class Field>
Option text(std::string name, std::string metavar, std::string help, unsigned verbs, Field field) {
  Option o;
  o.name = std::move(name);
  o.metavar = std::move(metavar);
  o.help = std::move(help);
  o.verbs = verbs;
  o.allowed = "any text";
  o.get = [field](const Settings& s) { return Texts{field(s)}; };
  o.set = [field](Settings& s, const Texts& texts) {
    field(s) = texts.at(0);
    return true;
  };
  return o;
}

template <class Field>
Option texts(std::string name, std::string metavar, std::string help, unsigned verbs, Field field) {
  Option o;
  o.name = std::move(name);
  o.metavar = std::move(metavar);
  o.help = std::move(help);
  o.verbs = verbs;
  o.takes = Takes::many_values;
  o.allowed = "any text";
  o.get = [field](const Settings& s) { return field(s); };
  o.set = [field](Settings& s, const Texts& values) {
    field(s) = values;
    return true;
  };
  return o;
}

}  // namespace moecollab::config
