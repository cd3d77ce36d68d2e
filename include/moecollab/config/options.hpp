// Command line and INI files to Settings, and back. One table of options is the source of parsing, help, INI
// text and the frozen list of names.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "moecollab/config/settings.hpp"

namespace moecollab::config {

struct VerbInfo {
  Verb verb;
  const char* name;     // as typed: "train", "expert train"
  const char* summary;  // one line
};
std::span<const VerbInfo> verbs();
const char* to_string(Verb verb);

enum class Ask : std::uint8_t {
  run,
  help,         // -h, --help
  help_config,  // --help-config: every key with its default, as an INI file
  dry_run,      // --dry-run: the resolved config and a plan, no work
};

struct CommandLine {
  Ask ask = Ask::run;
  Settings settings;
};

// `args`: what follows the verb. A key may stand on the command line (`--model.hidden_size 256`) and in the
// file of `--config` (section `[model]`, line `hidden_size = 256`); the command line wins. An INI file may
// hold keys of other verbs, so that one file serves a whole project; the command line may not. Throws
// UsageError: unknown key (with the nearest one, and file and line), unreadable value (with the allowed
// ones), a key set twice in one place, an option the verb requires that is missing (unless only help was
// asked for).
CommandLine parse(Verb verb, std::span<const std::string> args);

std::string help(Verb verb);
// Every key of the verb with its value; reads back to the same settings.
std::string write_ini(const Settings& settings, Verb verb);
// The same for default settings, with the help of each key as a comment.
std::string write_commented_ini(Verb verb);

// The candidate with the fewest edits from `word`, or empty when none is near. A word without a dot is also
// compared with the part of a candidate behind its dot.
std::string did_you_mean(const std::string& word, std::span<const std::string> candidates);

struct OptionInfo {
  std::string name;  // "model.hidden_size"
  std::string default_text;
  std::vector<std::string> verbs;
};
std::vector<OptionInfo> list_options();

}  // namespace moecollab::config
