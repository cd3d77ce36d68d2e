// moecollab-prepare: text to token files. See --help.
#include <fmt/format.h>

#include <atomic>
#include <csignal>
#include <exception>

#include "moecollab/core/error.hpp"
#include "prepare.hpp"

namespace {

std::atomic<bool> interrupted = false;  // the one thing that a signal handler can reach

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGINT, [](int) { interrupted = true; });
  std::signal(SIGTERM, [](int) { interrupted = true; });
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit then fails the write, which is reported
  try {
    if (const auto options = moecollab::prepare::parse_options(argc, argv))
      moecollab::prepare::prepare(*options, interrupted);
    return 0;
  } catch (const moecollab::Error& error) {
    fmt::print(stderr, "moecollab-prepare: {}\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    fmt::print(stderr, "moecollab-prepare: {}\n", error.what());
    return static_cast<int>(moecollab::ExitCode::bug);
  }
}
