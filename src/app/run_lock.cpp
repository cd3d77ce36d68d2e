#include "app/run_lock.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "moecollab/core/error.hpp"

namespace moecollab::app {

RunLock::RunLock(const std::string& run_dir) {
  std::filesystem::create_directories(run_dir);
  const std::string path = run_dir + "/lock";
  file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (file_ < 0) throw IoError(fmt::format("cannot open '{}': {}", path, std::strerror(errno)));
  if (::flock(file_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return;
    char holder[128] = "";
    const ssize_t length = ::pread(file_, holder, sizeof holder - 1, 0);
    ::close(file_);
    std::string who(holder, length > 0 ? static_cast<std::size_t>(length) : 0);
    who.erase(who.find_last_not_of('\n') + 1);
    throw UsageError(
        fmt::format("another job is at work in {}{}: wait for it, end it, or give another run.dir", run_dir,
                    who.empty() ? "" : " (" + who + ")"));
  }
  char host[64] = "";
  ::gethostname(host, sizeof host - 1);
  const std::string me = fmt::format("process {} on {}\n", ::getpid(), host);
  // Only for people: a line that could not be written must not stop the run.
  if (::ftruncate(file_, 0) == 0) [[maybe_unused]]
    const ssize_t written = ::pwrite(file_, me.data(), me.size(), 0);
}

RunLock::~RunLock() {
  if (file_ >= 0) ::close(file_);
}

}  // namespace moecollab::app
