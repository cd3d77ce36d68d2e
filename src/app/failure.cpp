#include "app/failure.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>
#include <thread>

#include "moecollab/core/error.hpp"

namespace moecollab::app {

namespace {

constexpr int code_of(ExitCode code) { return static_cast<int>(code); }

std::int64_t largest(const Communicator& world, std::int64_t value) {
  Stream stream;
  world.all_reduce_max(stream, {&value, DType::i64, Device::cpu, {1}});
  return value;
}

}  // namespace

Failure current_failure() {
  try {
    throw;
  } catch (const Error& error) {
    std::string message = error.what();
    if (error.code() == ExitCode::bug)
      message +=
          fmt::format(" (a fault in the program, at {}:{})", error.where().file_name(), error.where().line());
    return {code_of(error.code()), message};
  } catch (const std::bad_alloc&) {
    return {code_of(ExitCode::retry),
            "out of memory; lower model.max_rows or train.batch_size, raise train.micro_batches, or use more "
            "ranks"};
  } catch (const std::filesystem::filesystem_error& error) {
    return {code_of(ExitCode::retry), error.what()};
  } catch (const std::exception& error) {
    return {code_of(ExitCode::bug), fmt::format("{} (a fault in the program)", error.what())};
  }
}

void print_failure(const Communicator& world, const Failure& failure) {
  const std::string who = world.size() > 1 ? fmt::format("rank {}: ", world.rank()) : "";
  // One call, so that lines of several ranks do not mix.
  const std::string line = fmt::format("moecollab: {}{}\n", who, failure.message);
  std::fflush(stdout);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

std::optional<int> settle_together(const Communicator& world, const std::optional<Failure>& failure) {
  const std::int64_t size = world.size(), rank = world.rank();
  const std::int64_t first = size - largest(world, failure ? size - rank : 0);  // `size`: no rank failed
  if (first == size) return std::nullopt;
  if (rank == first) print_failure(world, *failure);
  return static_cast<int>(largest(world, rank == first ? failure->exit_code : 0));
}

void end_job(const Communicator& world, const Failure& failure) {
  const int rank = world.rank();
  if (rank > 0) std::this_thread::sleep_for(std::chrono::milliseconds(300 + 200 * std::min(rank, 5)));
  print_failure(world, failure);
  MpiSession::abort(failure.exit_code);
}

}  // namespace moecollab::app
