// One line of metrics: keys in the order they were set, each with its unit in the name.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "moecollab/core/phase.hpp"

namespace moecollab::report {

class Record {
 public:
  // Setting a key again replaces its value in place.
  Record& set(const std::string& key, double value);
  Record& set(const std::string& key, std::int64_t value);
  Record& set(const std::string& key, const std::string& value);
  Record& set(const std::string& key, const char* value) { return set(key, std::string(value)); }
  Record& set(const std::string& key, std::vector<double> values);
  Record& set(const std::string& key, std::vector<std::int64_t> values);
  // `<phase>_ms` for every phase.
  Record& set_phases_ms(const std::array<double, kNumPhases>& ms);

  // One JSON object without a line break. A number that is not finite is null: JSON has no word for it.
  // Doubles have as many digits as it takes to read them back exactly.
  std::string to_json() const;

 private:
  using Value =
      std::variant<double, std::int64_t, std::string, std::vector<double>, std::vector<std::int64_t>>;
  Record& put(const std::string& key, Value value);
  std::vector<std::pair<std::string, Value>> fields_;
};

}  // namespace moecollab::report
