// Runs moecollab as its users do, alone or under mpirun, into files or on a terminal.
#pragma once

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
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

inline Words joined(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

// In a child. It ends with the test, also with one that ran into its time limit.
[[noreturn]] inline void become(Words words) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

inline int exit_code_of(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// A process that has been started, with its output in files.
class Program {
 public:
  // `file_bytes`: it may not write files larger than that.
  explicit Program(const Words& words, rlim_t file_bytes = RLIM_INFINITY) {
    pid_ = ::fork();
    if (pid_ != 0) return;
    if (std::freopen((folder_ / "out").c_str(), "w", stdout) == nullptr ||
        std::freopen((folder_ / "err").c_str(), "w", stderr) == nullptr)
      ::_exit(126);
    const rlimit limit{file_bytes, file_bytes};
    if (file_bytes != RLIM_INFINITY && ::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(126);
    become(words);
  }
  ~Program() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t pid() const { return pid_; }
  ProgramResult wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return {exit_code_of(status), test::slurp(folder_ / "out"), test::slurp(folder_ / "err")};
  }

 private:
  test::TemporaryDirectory folder_;
  pid_t pid_ = -1;
};

inline Words alone(const Words& words) { return joined({MC_PROGRAM}, words); }
inline Words on_ranks(int ranks, const Words& words) {
  return joined({MC_MPIEXEC, "-n", std::to_string(ranks), MC_PROGRAM}, words);
}

inline ProgramResult moecollab(const Words& words) { return Program(alone(words)).wait(); }
inline ProgramResult moecollab_on(int ranks, const Words& words) {
  return Program(ranks == 1 ? alone(words) : on_ranks(ranks, words)).wait();
}
inline ProgramResult prepare(const Words& words) {
  return Program(joined({MC_PREPARE_PROGRAM}, words)).wait();
}

// The same with a terminal for input, output and errors, which come back as one text.
inline ProgramResult on_terminal(const Words& words) {
  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (terminal < 0 || ::grantpt(terminal) != 0 || ::unlockpt(terminal) != 0) return {};
  const std::string name = ::ptsname(terminal);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::setsid();
    const int end = ::open(name.c_str(), O_RDWR);
    if (end < 0 || ::ioctl(end, TIOCSCTTY, 0) != 0) ::_exit(126);
    for (const int standard : {0, 1, 2}) ::dup2(end, standard);
    if (end > 2) ::close(end);
    ::setenv("TERM", "xterm", 1);
    ::unsetenv("NO_COLOR");
    become(words);
  }
  ProgramResult result;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(terminal, buffer, sizeof buffer)) > 0;)
    result.output.append(buffer, static_cast<std::size_t>(n));
  int status = 0;
  ::waitpid(pid, &status, 0);
  ::close(terminal);
  result.exit_code = exit_code_of(status);
  return result;
}

}  // namespace moecollab::app
