// moecollab: reads the command line, runs one verb on every rank, and turns errors into one message and a
// documented exit code. The only place that catches.
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "app/command_line.hpp"
#include "app/commands.hpp"
#include "app/failure.hpp"
#include "app/flight.hpp"
#include "app/plan.hpp"
#include "app/run_lock.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::app {

namespace {

void run_verb(config::Verb verb, const Job& job) {
  switch (verb) {
    case config::Verb::train:
      return run_train(job);
    case config::Verb::expert_train:
      return run_expert_train(job);
    case config::Verb::assemble:
      return run_assemble(job);
    case config::Verb::eval:
      return run_eval(job);
    case config::Verb::generate:
      return run_generate(job);
    case config::Verb::selftest:
      return run_selftest(job);
    case config::Verb::count_:
      break;
  }
  throw InternalError("a verb without a function");
}

// The resolved config, and the plan as comments of it: the whole of it can be kept as an INI file.
std::string dry_run(config::Verb verb, const config::Settings& settings, const Communicator& world) {
  const Plan planned = plan(verb, settings, world.size());
  std::string out = config::write_ini(planned.settings, verb) + '\n';
  std::istringstream lines(planned.text);
  for (std::string line; std::getline(lines, line);) out += "# " + line + '\n';
  return out;
}

// What only prints. Empty when there is work to do.
std::optional<std::string> answer(const Command& command, const config::CommandLine& line,
                                  const Communicator& world) {
  if (command.wish == Wish::overview) return overview();
  if (command.wish == Wish::version) return std::string("moecollab " MOECOLLAB_VERSION "\n");
  switch (line.ask) {
    case config::Ask::help:
      return config::help(command.verb);
    case config::Ask::help_config:
      return config::write_commented_ini(command.verb);
    case config::Ask::dry_run:
      return dry_run(command.verb, line.settings, world);
    case config::Ask::run:
      break;
  }
  return std::nullopt;
}

// The verb itself, with a flight record where it has a run directory. Errors end the whole job.
int work(config::Verb verb, const config::Settings& settings, const Communicator& world) {
  std::optional<RunLock> lock;
  std::unique_ptr<FlightRecord> record;
  try {
    // An INI file may name the run directory of `train` to other verbs; they must leave its records alone.
    const bool has_run = verb == config::Verb::train || verb == config::Verb::expert_train;
    if (has_run && world.rank() == 0) lock.emplace(settings.run.dir);  // before it touches anything
    if (has_run) record = open_flight(settings.run.dir, world);
    note_termination(record.get());
    PhaseClock clock;
    clock.attach(record.get());
    run_verb(verb, {settings, verb, world.split(0, world.rank()), clock});
    stop_noting_termination();
    if (record) record->set_status("done");
    return 0;
  } catch (...) {
    const Failure failure = current_failure();
    stop_noting_termination();
    if (record) record->set_status(("error: " + failure.message).c_str());
    if (world.size() > 1) end_job(world, failure);
    print_failure(world, failure);
    return failure.exit_code;
  }
}

int run(const std::vector<std::string>& words) {
  const Communicator world = Communicator::world();
  Command command;
  config::CommandLine line;
  std::optional<std::string> text;
  std::optional<Failure> failure;
  try {
    command = read_command(words);
    if (command.wish == Wish::verb) line = config::parse(command.verb, command.args);
    const bool works = line.ask == config::Ask::run || line.ask == config::Ask::dry_run;
    if (command.wish == Wish::verb && works)
      check_early(command.verb, line.settings, world.size(), line.ask == config::Ask::run);
    text = answer(command, line, world);
  } catch (...) {
    failure = current_failure();
  }
  if (const std::optional<int> code = settle_together(world, failure)) return *code;
  if (!text) return work(command.verb, line.settings, world);
  if (world.rank() == 0) std::fputs(text->c_str(), stdout);
  return 0;
}

}  // namespace

}  // namespace moecollab::app

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit then fails the write, which is reported
  try {
    const moecollab::MpiSession session(&argc, &argv);
    return moecollab::app::run({argv + 1, argv + argc});
  } catch (...) {
    const moecollab::app::Failure failure = moecollab::app::current_failure();
    fmt::print(stderr, "moecollab: {}\n", failure.message);
    return failure.exit_code;
  }
}
