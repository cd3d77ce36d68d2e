// Runs moecollab-prepare as its users do.
#pragma once

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "support/temporary_directory.hpp"

namespace moecollab::prepare {

struct ProgramResult {
  int exit_code = -1;
  std::string output;
  std::string errors;
  long peak_kib = 0;  // resident memory
};

struct ProgramLimits {
  rlim_t file_bytes = RLIM_INFINITY;
  std::string interrupt_when_exists;  // a path; empty: never
};

inline ProgramResult run_program(const std::string& program, std::vector<std::string> arguments,
                                 const ProgramLimits& limits = {}) {
  const test::TemporaryDirectory folder;
  arguments.insert(arguments.begin(), program);
  const pid_t child = ::fork();
  if (child == 0) {
    if (std::freopen((folder / "out").c_str(), "w", stdout) == nullptr ||
        std::freopen((folder / "err").c_str(), "w", stderr) == nullptr)
      ::_exit(126);
    const rlimit limit{limits.file_bytes, RLIM_INFINITY};
    if (limits.file_bytes != RLIM_INFINITY) ::setrlimit(RLIMIT_FSIZE, &limit);
    std::vector<char*> argv;
    for (std::string& each : arguments) argv.push_back(each.data());
    argv.push_back(nullptr);
    ::execv(program.c_str(), argv.data());
    ::_exit(127);
  }
  if (!limits.interrupt_when_exists.empty()) {
    for (int i = 0; i < 10000 && !std::filesystem::exists(limits.interrupt_when_exists); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ::kill(child, SIGINT);
  }
  int status = 0;
  rusage used{};
  ::wait4(child, &status, 0, &used);
  ProgramResult result;
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.output = test::slurp(folder / "out");
  result.errors = test::slurp(folder / "err");
  result.peak_kib = used.ru_maxrss;
  return result;
}

inline ProgramResult prepare_program(const std::vector<std::string>& arguments,
                                     const ProgramLimits& limits = {}) {
  return run_program(MC_PREPARE_PROGRAM, arguments, limits);
}

}  // namespace moecollab::prepare
