// A group of ranks that exchange rows. `Communicator::self()` is a group of one that needs no MPI; `world()`
// spans the MPI job. Every rank of a group joins every collective, with explicit zero counts where it has
// nothing.
//
// All tensors of a call lie on one device, the same on every rank. Host tensors travel through MPI, whatever
// the stream, and have arrived when the call returns. Device tensors travel through NCCL in the order of a
// CUDA stream: the host does not wait, and the memory must live until the stream has got there.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab {

// Starts and ends MPI for the process (once, in main). Asks for MPI_THREAD_FUNNELED. When the program was not
// started by mpirun or srun it runs as a job of one rank.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
  // Ends every rank of the job with `exit_code`. Never returns.
  [[noreturn]] static void abort(int exit_code);
};

// Which rows travel to and from each peer: peer p gets rows [send_begin[p], send_begin[p] + send_rows[p]) of
// `send`, and its rows land at [recv_begin[p], recv_begin[p] + recv_rows[p]) of `recv`. All spans have size()
// entries.
struct RowExchange {
  std::span<const std::int64_t> send_begin, send_rows, recv_begin, recv_rows;
};

class Communicator {  // concrete, move-only
 public:
  static Communicator self();
  static Communicator world();  // a duplicate of MPI_COMM_WORLD; needs an MpiSession
  Communicator(Communicator&&) noexcept;
  Communicator& operator=(Communicator&&) noexcept;
  ~Communicator();

  int rank() const;
  int size() const;

  // Rows are slices of the first axis; both tensors have one row shape and type. Checks on entry that row
  // counts agree with the extents (ShapeError). Counts are rows, never bytes, and may exceed 2^31 / row size.
  void all_to_all_rows(Stream&, ConstTensorView send, TensorView recv, const RowExchange& rows) const;
  void all_reduce_sum(Stream&, TensorView) const;  // in place; f32, f64, i64
  void all_reduce_max(Stream&, TensorView) const;  // host tensors only
  // out[p] = in of rank p; `out` has size() times the rows of `in`.
  void all_gather(Stream&, ConstTensorView in, TensorView out) const;
  void broadcast(Stream&, TensorView, int root) const;
  std::string broadcast(const std::string& text, int root) const;
  void barrier() const;
  // True when `ok` is true on every rank. Use it before a decision that all ranks must take together.
  bool all_agree(bool ok) const;

  Communicator split(int color, int key) const;
  int ranks_on_host() const;  // ranks of this group that share this rank's memory; collective
  // Gives every rank of this group a CUDA device of its own (the first visible one that no lower rank of its
  // host took), sends this process's CUDA work there and returns its index. Collective, before the first
  // device tensor. Throws UsageError, on all ranks, when a host has fewer devices than ranks.
  int use_local_cuda_device() const;

 private:
  struct Impl;
  explicit Communicator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moecollab
