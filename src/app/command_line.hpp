// The words before the options: which verb, or what was asked instead.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "moecollab/config/options.hpp"

namespace moecollab::app {

enum class Wish : std::uint8_t {
  verb,      // run a verb, or what its own options ask for (-h, --dry-run, ...)
  overview,  // help, --help, -h
  version,   // --version
};

struct Command {
  Wish wish = Wish::overview;
  config::Verb verb = config::Verb::train;  // for Wish::verb
  std::vector<std::string> args;            // what follows the verb
};

// Throws UsageError for no words at all, and for an unknown verb (with the nearest one).
Command read_command(std::span<const std::string> words);

// Verbs, exit codes, and where to read on.
std::string overview();

// The rules of config::check as far as they can be held before a file is opened: all of them for a model that
// starts fresh, those of the training settings otherwise.
// A plan (`works` is false) may be made for a device that this machine lacks.
void check_early(config::Verb verb, const config::Settings& settings, int num_ranks, bool works);

}  // namespace moecollab::app
