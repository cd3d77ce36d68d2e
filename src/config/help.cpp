#include <fmt/format.h>

#include <array>

#include "config/ini.hpp"
#include "config/table.hpp"
#include "moecollab/config/options.hpp"

namespace moecollab::config {

namespace {

constexpr std::array<VerbInfo, static_cast<std::size_t>(Verb::count_)> kVerbs{{
    {Verb::train, "train", "Train a model, or go on with a run"},
    {Verb::expert_train, "expert train", "Train one expert on top of a frozen anchor and write its shard"},
    {Verb::assemble, "assemble", "Join contributed experts to an anchor, without any data"},
    {Verb::eval, "eval", "Bits per byte of each domain, and where its tokens go"},
    {Verb::generate, "generate", "Continue a text"},
    {Verb::selftest, "selftest", "Check this machine: exchanges between ranks, arithmetic, files"},
}};

struct SectionTitle {
  const char* section;
  const char* title;
};
constexpr SectionTitle kTitles[] = {{"", "Command"},
                                    {"run", "Run"},
                                    {"data", "Data"},
                                    {"model", "Model"},
                                    {"expert", "Experts"},
                                    {"train", "Training"},
                                    {"balance", "Balance of the experts"},
                                    {"optimizer", "Optimizer"}};

constexpr std::size_t kHelpColumn = 30, kHelpWidth = 100;

// `text` broken at blanks, starting at column kHelpColumn.
std::string wrapped(const std::string& text) {
  std::string out;
  std::size_t column = kHelpColumn;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    if (column + (end - begin) > kHelpWidth && column > kHelpColumn) {
      out.back() = '\n';
      out += std::string(kHelpColumn, ' ');
      column = kHelpColumn;
    }
    out += text.substr(begin, end - begin) + ' ';
    column += end - begin + 1;
    begin = end + 1;
  }
  if (!out.empty()) out.pop_back();
  return out + '\n';
}

std::string help_line(const std::string& left, const std::string& text) {
  std::string line = "  " + left;
  line += line.size() + 1 < kHelpColumn ? std::string(kHelpColumn - line.size(), ' ')
                                        : '\n' + std::string(kHelpColumn, ' ');
  return line + wrapped(text);
}

std::string explained(const Option& option, Verb verb) {
  const Settings defaults;
  std::string text = option.help;
  if (!option.alias.empty()) text += fmt::format(" (short: --{})", option.alias);
  if (option.is_required_by(verb)) return text + " (required)";
  const Texts value = option.get(defaults);
  if (option.takes != Takes::nothing && !value.empty() && !value.at(0).empty())
    text += fmt::format(" (default: {})", value.at(0));
  return text;
}

template <class Visit>
void for_each_section(Verb verb, Visit visit) {
  for (const SectionTitle& title : kTitles) {
    std::vector<const Option*> options;
    for (const Option& option : option_table())
      if (option.section() == title.section && option.belongs_to(verb)) options.push_back(&option);
    if (!options.empty()) visit(title, options);
  }
}

std::string ini_text(const Settings& settings, Verb verb, bool commented) {
  std::string out;
  for_each_section(verb, [&](const SectionTitle& title, const std::vector<const Option*>& options) {
    if (*title.section != '\0') out += fmt::format("{}[{}]\n", out.empty() ? "" : "\n", title.section);
    for (const Option* option : options) {
      if (commented)
        out += fmt::format("# {} ({})\n", option->help,
                           option->metavar.empty() ? "true|false" : option->metavar);
      const Texts values = option->get(settings);
      if (commented && values.empty()) out += fmt::format("# {} =\n", option->key());
      for (const std::string& value : values) {
        const std::string written = ini_value(value);
        out += fmt::format("{} ={}{}\n", option->key(), written.empty() ? "" : " ", written);
      }
    }
  });
  return out;
}

}  // namespace

std::span<const VerbInfo> verbs() { return kVerbs; }

const char* to_string(Verb verb) { return kVerbs.at(static_cast<std::size_t>(verb)).name; }

std::string help(Verb verb) {
  const VerbInfo& info = kVerbs.at(static_cast<std::size_t>(verb));
  std::string out = fmt::format("moecollab {}: {}\n\n", info.name, info.summary);
  out += fmt::format("Usage: moecollab {}", info.name);
  for (const Option& option : option_table())
    if (option.is_required_by(verb)) out += fmt::format(" --{} {}", option.name, option.metavar);
  out += " [options]\n";
  for_each_section(verb, [&](const SectionTitle& title, const std::vector<const Option*>& options) {
    out += fmt::format("\n{}\n", title.title);
    for (const Option* option : options) {
      const bool takes_text = option->takes != Takes::nothing;
      out += help_line(
          fmt::format("--{}{}{}", option->name, takes_text ? " " : "", takes_text ? option->metavar : ""),
          explained(*option, verb));
    }
  });
  out += "\nEverywhere\n";
  out += help_line("--config FILE", "Read keys from an INI file; the command line wins");
  out += help_line("--dry-run", "Print the resolved config and a plan, and do no work");
  out += help_line("--help-config", "Print every key with its default, as an INI file");
  out += help_line("-h, --help", "Print this");
  return out;
}

std::string write_ini(const Settings& settings, Verb verb) { return ini_text(settings, verb, false); }

std::string write_commented_ini(Verb verb) { return ini_text(Settings{}, verb, true); }

}  // namespace moecollab::config
