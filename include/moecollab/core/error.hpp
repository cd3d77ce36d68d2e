// Typed errors. Libraries throw them; only `main` catches, prints rank and message, and ends the whole job
// with the exit code that belongs to the type.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace moecollab {

// Exit codes of every `moecollab` program. Documented in README.md; scripts and schedulers rely on them.
enum class ExitCode : int {
  done = 0,
  usage = 64,           // an option, a config rule, or a rank count that cannot work
  bad_data = 65,        // a data file, checkpoint or contribution that is damaged or does not fit
  bug = 70,             // a broken promise inside the program
  retry = 75,           // the machine failed (disk, file system); what was saved before is intact: run again
  do_not_requeue = 93,  // training itself failed (non-finite loss): running again would fail again
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& what, std::source_location where)
      : std::runtime_error(what), code_(code), where_(where) {}
  ExitCode code() const { return code_; }
  const std::source_location& where() const { return where_; }

 private:
  ExitCode code_;
  std::source_location where_;
};

// Each message names the rule, the value that broke it, and the way out.
struct UsageError : Error {
  explicit UsageError(const std::string& what, std::source_location where = std::source_location::current())
      : Error(ExitCode::usage, what, where) {}
};
struct DataError : Error {
  explicit DataError(const std::string& what, std::source_location where = std::source_location::current())
      : Error(ExitCode::bad_data, what, where) {}
};
struct CheckpointError : Error {
  explicit CheckpointError(const std::string& what,
                           std::source_location where = std::source_location::current())
      : Error(ExitCode::bad_data, what, where) {}
};
struct ContributionError : Error {
  explicit ContributionError(const std::string& what,
                             std::source_location where = std::source_location::current())
      : Error(ExitCode::bad_data, what, where) {}
};
struct IoError : Error {
  explicit IoError(const std::string& what, std::source_location where = std::source_location::current())
      : Error(ExitCode::retry, what, where) {}
};
struct NonFiniteError : Error {
  explicit NonFiniteError(const std::string& what,
                          std::source_location where = std::source_location::current())
      : Error(ExitCode::do_not_requeue, what, where) {}
};
struct ShapeError : Error {
  explicit ShapeError(const std::string& what, std::source_location where = std::source_location::current())
      : Error(ExitCode::bug, what, where) {}
};
struct DTypeError : Error {
  explicit DTypeError(const std::string& what, std::source_location where = std::source_location::current())
      : Error(ExitCode::bug, what, where) {}
};
struct InternalError : Error {
  explicit InternalError(const std::string& what,
                         std::source_location where = std::source_location::current())
      : Error(ExitCode::bug, what, where) {}
};

}  // namespace moecollab
