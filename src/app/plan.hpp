// What a command would do and need, told from settings, manifests and the frames of data files alone: no
// weight is read, nothing is written.
#pragma once

#include <cstdint>
#include <string>

#include "moecollab/config/settings.hpp"

namespace moecollab::app {

struct Plan {
  config::Settings settings;  // with the model that the command will work on
  std::string text;           // empty for a verb without a model
};

// Throws what the command itself would throw for its inputs and rules.
Plan plan(config::Verb verb, const config::Settings& settings, std::int64_t num_ranks);

}  // namespace moecollab::app
