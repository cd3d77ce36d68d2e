// The table of options: for each its name, help, verbs, and how it is read from and written to Settings.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "moecollab/config/options.hpp"

namespace moecollab::config {

using Texts = std::vector<std::string>;

enum class Takes : std::uint8_t {
  one_value,
  many_values,  // a list: several words on the command line, a line per entry in an INI file
  nothing,      // a switch: its presence means true
};

// What may change about the model of a checkpoint without making its weights meaningless.
enum class Changes : std::uint8_t {
  architecture,
  use,
  from_data,  // architecture, but 0 asks for what the data says and so fits every checkpoint
};

struct Option {
  std::string name;
  std::string alias;    // a second spelling, or empty
  std::string metavar;  // "N", "FILE", "lm|classifier"
  std::string help;
  unsigned verbs = 0;        // bit per Verb
  unsigned required_by = 0;  // bit per Verb
  Takes takes = Takes::one_value;
  Changes changes = Changes::architecture;  // read for `model.` options only
  std::string allowed;                      // "an integer", "one of a, b"
  std::function<Texts(const Settings&)> get;
  // Returns false when the text is not a value of the option's type or range.
  std::function<bool(Settings&, const Texts&)> set;

  bool belongs_to(Verb verb) const { return (verbs >> static_cast<unsigned>(verb) & 1U) != 0; }
  bool is_required_by(Verb verb) const { return (required_by >> static_cast<unsigned>(verb) & 1U) != 0; }
  std::string section() const;  // "model" of "model.hidden_size", empty without a dot
  std::string key() const;      // "hidden_size"
};

std::span<const Option> option_table();
// By name or alias; null when there is none.
const Option* find_option(const std::string& name);

}  // namespace moecollab::config
