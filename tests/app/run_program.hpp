// Runs moecollab as its users do, alone or under mpirun.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "support/temporary_directory.hpp"

namespace moecollab::app {

using Words = std::vector<std::string>;

struct ProgramResult {
  int exit_code = -1;  // 128 + signal when one ended it
  std::string output, errors;
};

inline std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

// A process that has been started, with its output in files.
class Program {
 public:
  explicit Program(Words words) {
    pid_ = ::fork();
    if (pid_ != 0) return;
    if (std::freopen((folder_ / "out").c_str(), "w", stdout) == nullptr ||
        std::freopen((folder_ / "err").c_str(), "w", stderr) == nullptr)
      ::_exit(126);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ProgramResult wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), test::slurp(folder_ / "out"),
            test::slurp(folder_ / "err")};
  }

 private:
  test::TemporaryDirectory folder_;
  pid_t pid_ = -1;
};

inline Words on_ranks(int ranks, const Words& words) {
  Words all{MC_MPIEXEC, "-n", std::to_string(ranks), MC_PROGRAM};
  all.insert(all.end(), words.begin(), words.end());
  return all;
}

inline ProgramResult moecollab(const Words& words) {
  Words all{MC_PROGRAM};
  all.insert(all.end(), words.begin(), words.end());
  return Program(all).wait();
}

inline ProgramResult moecollab_on(int ranks, const Words& words) {
  return Program(on_ranks(ranks, words)).wait();
}

}  // namespace moecollab::app
