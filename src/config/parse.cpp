#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "config/ini.hpp"
#include "config/table.hpp"
#include "moecollab/config/options.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::config {

namespace {

namespace po = boost::program_options;

constexpr const char* kConfig = "config";
constexpr const char* kDryRun = "dry-run";

po::options_description describe() {
  po::options_description all;
  auto add = all.add_options();
  add(kConfig, po::value<std::string>(), "");
  add(kDryRun, po::bool_switch(), "");
  for (const Option& option : option_table()) {
    switch (option.takes) {
      case Takes::one_value:
        add(option.name.c_str(), po::value<std::string>(), "");
        break;
      case Takes::many_values:
        add(option.name.c_str(), po::value<Texts>()->multitoken(), "");
        break;
      case Takes::nothing:
        add(option.name.c_str(), po::value<std::string>()->zero_tokens()->implicit_value("true"), "");
        break;
    }
  }
  return all;
}

// `--run X` and `--run=X` as `--run.dir X`.
std::vector<std::string> without_aliases(std::span<const std::string> args) {
  std::vector<std::string> plain(args.begin(), args.end());
  for (std::string& arg : plain) {
    if (!arg.starts_with("--")) continue;
    const std::size_t end = std::min(arg.find('='), arg.size());
    const Option* option = find_option(arg.substr(2, end - 2));
    if (option != nullptr) arg.replace(2, end - 2, option->name);
  }
  return plain;
}

std::string suggestion(Verb verb, const std::string& name, const char* dashes) {
  Texts candidates;
  for (const Option& option : option_table())
    if (option.belongs_to(verb)) candidates.push_back(option.name);
  if (*dashes != '\0') candidates.insert(candidates.end(), {kConfig, kDryRun, "help", "help-config"});
  const std::string nearest = did_you_mean(name, candidates);
  return nearest.empty() ? fmt::format("; `moecollab {} --help` lists all", to_string(verb))
                         : fmt::format("; did you mean {}{}?", dashes, nearest);
}

po::parsed_options parse_words(Verb verb, const std::vector<std::string>& words,
                               const po::options_description& description) {
  namespace style = po::command_line_style;
  try {
    return po::command_line_parser(words)
        .options(description)
        .style(style::unix_style & ~style::allow_guessing)
        .run();
  } catch (const po::unknown_option& error) {
    std::string name = error.get_option_name();
    name.erase(0, name.find_first_not_of('-'));
    name = name.substr(0, name.find('='));
    throw UsageError(fmt::format("there is no option --{}{}", name, suggestion(verb, name, "--")));
  } catch (const po::error& error) {
    throw UsageError(fmt::format("command line: {}", error.what()));
  }
}

// The name of each option on the command line, after checks that need the words and not the values.
std::set<std::string> names_of(Verb verb, const po::parsed_options& parsed) {
  std::set<std::string> names;
  for (const po::option& word : parsed.options) {
    if (word.position_key >= 0)
      throw UsageError(fmt::format("`{}` takes options only, but '{}' stands alone; did you mean --{}?",
                                   to_string(verb), word.value.at(0), word.value.at(0)));
    const Option* option = find_option(word.string_key);
    if (option != nullptr && !option->belongs_to(verb)) {
      Texts owners;
      for (const VerbInfo& info : verbs())
        if (option->belongs_to(info.verb)) owners.push_back(fmt::format("`{}`", info.name));
      throw UsageError(fmt::format("--{} is an option of {}, not of `{}`", option->name,
                                   fmt::join(owners, ", "), to_string(verb)));
    }
    if (!names.insert(word.string_key).second)
      throw UsageError(fmt::format("--{} is given twice; give it once", word.string_key));
  }
  return names;
}

// The entries of an INI file as options for Boost to store; `where` gets "file:line" of each name.
po::parsed_options parse_file(Verb verb, const std::string& path, const po::options_description& description,
                              std::map<std::string, std::string>& where) {
  std::ifstream file(path);
  std::stringstream text;
  if (!file || !(text << file.rdbuf()))
    throw UsageError(fmt::format("--config {}: the file cannot be read, or is empty", path));
  po::parsed_options parsed(&description);
  for (const IniEntry& entry : read_ini(text.str(), path)) {
    const std::string place = fmt::format("{}:{}", path, entry.line);
    const Option* option = find_option(entry.name);
    if (option == nullptr)
      throw UsageError(
          fmt::format("{}: there is no key {}{}", place, entry.name, suggestion(verb, entry.name, "")));
    const auto [first, is_new] = where.emplace(option->name, place);
    if (!is_new && option->takes != Takes::many_values)
      throw UsageError(
          fmt::format("{}: {} was set before, at {}; set it once", place, option->name, first->second));
    parsed.options.emplace_back(option->name, Texts{entry.value});
  }
  return parsed;
}

void require_all(Verb verb, const Settings& settings) {
  Texts missing;
  for (const Option& option : option_table()) {
    const Texts value = option.get(settings);
    if (option.is_required_by(verb) && (value.empty() || value.at(0).empty()))
      missing.push_back(fmt::format("--{} {}", option.name, option.metavar));
  }
  if (!missing.empty())
    throw UsageError(fmt::format("`{}` needs {}", to_string(verb), fmt::join(missing, " and ")));
}

}  // namespace

CommandLine parse(Verb verb, std::span<const std::string> args) {
  CommandLine line;
  for (const std::string& arg : args) {
    if (arg == "-h" || arg == "--help") line.ask = Ask::help;
    if (arg == "--help-config") line.ask = Ask::help_config;
    if (line.ask != Ask::run) return line;
  }
  const po::options_description description = describe();
  const po::parsed_options words = parse_words(verb, without_aliases(args), description);
  const std::set<std::string> on_command_line = names_of(verb, words);
  po::variables_map values;
  po::store(words, values);
  std::map<std::string, std::string> where;
  if (values.count(kConfig) > 0)  // what is stored first wins
    po::store(parse_file(verb, values[kConfig].as<std::string>(), description, where), values);
  for (const Option& option : option_table()) {
    if (values.count(option.name) == 0) continue;
    const po::variable_value& value = values[option.name];
    const Texts texts =
        option.takes == Takes::many_values ? value.as<Texts>() : Texts{value.as<std::string>()};
    if (!option.set(line.settings, texts)) {
      const bool typed = on_command_line.contains(option.name);
      throw UsageError(fmt::format("{}{} = '{}' is not valid; allowed: {}",
                                   typed ? "--" : where[option.name] + ": ", option.name,
                                   fmt::join(texts, " "), option.allowed));
    }
    line.settings.given.push_back(option.name);
  }
  if (values[kDryRun].as<bool>()) line.ask = Ask::dry_run;
  require_all(verb, line.settings);
  if (verb == Verb::expert_train && line.settings.run.dir.empty())
    line.settings.run.dir = line.settings.out + "/run";
  return line;
}

}  // namespace moecollab::config
