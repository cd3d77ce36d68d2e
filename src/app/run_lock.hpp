// One job per run directory: a second one would remove the first one's checkpoints and mix into its metrics.
#pragma once

#include <string>

namespace moecollab::app {

// Holds <run>/lock (made when missing, never removed) for as long as it lives. The lock is the kernel's: it
// goes with the process, however that dies, so none is ever left over. Where the file system has no locks the
// run goes on without one.
class RunLock {
 public:
  // Throws UsageError when a live job holds it, naming that job; IoError when the file cannot be made.
  explicit RunLock(const std::string& run_dir);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int file_ = -1;
};

}  // namespace moecollab::app
