#include "app/command_line.hpp"

#include <fmt/format.h>

#include <limits>

#include "moecollab/core/device.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::app {

namespace {

struct CodeMeaning {
  ExitCode code;
  const char* meaning;
};
constexpr CodeMeaning kCodes[] = {
    {ExitCode::done, "done"},
    {ExitCode::usage, "an option, a config rule or a number of ranks that cannot work"},
    {ExitCode::bad_data, "a data file, checkpoint or contribution that is damaged or does not fit"},
    {ExitCode::bug, "a fault in the program"},
    {ExitCode::retry, "the machine failed (disk, memory); what was saved is intact: run again"},
    {ExitCode::do_not_requeue, "training failed (a loss that is no number): running again fails again"},
};

std::vector<std::string> verb_names() {
  std::vector<std::string> names{"help"};
  for (const config::VerbInfo& info : config::verbs()) names.emplace_back(info.name);
  return names;
}

// How many words of `words` name `verb`: all of its own, or 0.
std::size_t matched_words(const std::string& verb, std::span<const std::string> words) {
  std::size_t count = 0;
  for (std::size_t begin = 0; begin < verb.size(); ++count) {
    const std::size_t end = std::min(verb.find(' ', begin), verb.size());
    if (count >= words.size() || words[count] != verb.substr(begin, end - begin)) return 0;
    begin = end + 1;
  }
  return count;
}

Command read_verb(std::span<const std::string> words) {
  for (const config::VerbInfo& info : config::verbs())
    if (const std::size_t count = matched_words(info.name, words); count > 0)
      return {Wish::verb, info.verb, {words.begin() + static_cast<std::ptrdiff_t>(count), words.end()}};
  std::string typed = words[0];
  if (typed == "expert" && words.size() > 1) typed += " " + words[1];
  const std::string nearest = typed == "expert" ? "expert train" : config::did_you_mean(typed, verb_names());
  throw UsageError(fmt::format(
      "there is no command '{}'; {}", typed,
      nearest.empty() ? "`moecollab help` lists all" : fmt::format("did you mean `moecollab {}`?", nearest)));
}

}  // namespace

Command read_command(std::span<const std::string> words) {
  if (words.empty()) throw UsageError("a command is missing; `moecollab help` lists all");
  if (words[0] == "--version") return {Wish::version, {}, {}};
  if (words[0] == "-h" || words[0] == "--help") return {Wish::overview, {}, {}};
  if (words[0] != "help") return read_verb(words);
  if (words.size() == 1) return {Wish::overview, {}, {}};
  Command command = read_verb(words.subspan(1));
  command.args = {"--help"};
  return command;
}

std::string overview() {
  std::string out =
      "moecollab: sparse Mixture-of-Experts models, trained expert-parallel over MPI, with experts that\n"
      "anyone can contribute.\n\nUsage: [mpirun -n RANKS] moecollab COMMAND [options]\n\nCommands\n";
  for (const config::VerbInfo& info : config::verbs())
    out += fmt::format("  {:<16}{}\n", info.name, info.summary);
  out += fmt::format("  {:<16}{}\n", "help COMMAND", "Options of a command (also: moecollab COMMAND -h)");
  out += fmt::format("  {:<16}{}\n\nExit codes\n", "--version", "Print the version");
  for (const CodeMeaning& code : kCodes)
    out += fmt::format("  {:<16}{}\n", static_cast<int>(code.code), code.meaning);
  return out;
}

void check_early(config::Verb verb, const config::Settings& settings, int num_ranks, bool works) {
  using config::Verb;
  config::check_device(settings.device);
  if (const CudaDevices devices = cuda_devices();
      works && settings.device == config::DeviceChoice::cuda && devices.num == 0)
    throw UsageError("--device cuda: " + devices.why_none + "; use --device cpu");
  if (verb == Verb::train && settings.run.init.empty())
    config::check(settings, settings.expert.num_experts, num_ranks);
  else if (verb == Verb::train || verb == Verb::expert_train || verb == Verb::eval)
    train::check(settings.train, num_ranks, std::numeric_limits<std::int64_t>::max());
}

}  // namespace moecollab::app
