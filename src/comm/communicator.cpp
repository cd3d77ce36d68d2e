#include "moecollab/comm/communicator.hpp"

#include <mpi.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <exception>

#include "comm/communicator_impl.hpp"
#include "comm/mpi_check.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab {

namespace {

// MPI 3 counts are ints. Bytes go out in pieces of this size; rows are counted, so only their number is
// bound.
constexpr std::int64_t kPieceBytes = std::int64_t{1} << 30;

// One row as an MPI type, so that counts and offsets are rows.
class RowType {
 public:
  explicit RowType(std::int64_t row_bytes) {
    check_mpi(MPI_Type_contiguous(to_int(row_bytes, "bytes of a row"), MPI_BYTE, &type_),
              "MPI_Type_contiguous");
    check_mpi(MPI_Type_commit(&type_), "MPI_Type_commit");
  }
  ~RowType() { MPI_Type_free(&type_); }
  RowType(const RowType&) = delete;
  RowType& operator=(const RowType&) = delete;
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

std::int64_t row_numel(const Shape& shape) {
  std::int64_t n = 1;
  for (int axis = 1; axis < shape.rank(); ++axis) n *= shape[axis];
  return n;
}

void check_same_rows(const char* call, ConstTensorView a, ConstTensorView b) {
  bool same = a.shape.rank() >= 1 && a.shape.rank() == b.shape.rank();
  for (int axis = 1; same && axis < a.shape.rank(); ++axis) same = a.shape[axis] == b.shape[axis];
  if (!same)
    throw ShapeError(std::string(call) + ": rows of " + to_string(a.shape) + " and " + to_string(b.shape) +
                     " differ");
  if (a.dtype != b.dtype)
    throw DTypeError(std::string(call) + ": " + to_string(a.dtype) + " rows cannot be received as " +
                     to_string(b.dtype));
}

void check_ranges(const char* side, std::span<const std::int64_t> begin, std::span<const std::int64_t> rows,
                  int size, std::int64_t extent) {
  const auto peers = static_cast<std::size_t>(size);
  if (begin.size() != peers || rows.size() != peers)
    throw ShapeError("all_to_all_rows: " + std::string(side) + " lists " + std::to_string(begin.size()) +
                     " begins and " + std::to_string(rows.size()) + " counts for " + std::to_string(size) +
                     " ranks");
  for (std::size_t p = 0; p < peers; ++p)
    if (begin[p] < 0 || rows[p] < 0 || begin[p] > extent || rows[p] > extent - begin[p])
      throw ShapeError("all_to_all_rows: " + std::string(side) + " rows [" + std::to_string(begin[p]) +
                       ", +" + std::to_string(rows[p]) + ") of peer " + std::to_string(p) +
                       " lie outside the tensor's " + std::to_string(extent) + " rows");
}

std::vector<int> to_ints(std::span<const std::int64_t> values, const char* what) {
  std::vector<int> ints(values.size());
  std::transform(values.begin(), values.end(), ints.begin(),
                 [what](std::int64_t value) { return to_int(value, what); });
  return ints;
}

}  // namespace

int to_int(std::int64_t value, const char* what) {
  if (value < 0 || value > INT_MAX)
    throw InternalError(std::to_string(value) + " " + what + " do not fit an MPI count (" +
                        std::to_string(INT_MAX) + "): send in smaller parts");
  return static_cast<int>(value);
}

bool on_cuda(const char* call, const Stream& stream, ConstTensorView a, ConstTensorView b) {
  if (a.device != b.device)
    throw InternalError(std::string(call) + ": one tensor lies on " + to_string(a.device) +
                        ", the other on " + to_string(b.device));
  if (a.device == Device::cpu) return false;
  if (stream.device() != a.device)
    throw InternalError(std::string(call) + ": a tensor on " + to_string(a.device) +
                        " needs a stream of it, not of " + to_string(stream.device()));
  return true;
}

// Freeing is collective, so it is left out while an exception unwinds (the job is about to end), and after
// MPI itself has ended.
Communicator::Impl::~Impl() {
  devices.reset();
  if (comm != MPI_COMM_NULL && std::uncaught_exceptions() == 0 && mpi_is_running()) MPI_Comm_free(&comm);
}

std::unique_ptr<Communicator::Impl> Communicator::Impl::adopt(MPI_Comm comm) {
  auto impl = std::make_unique<Impl>();
  impl->comm = comm;
  check_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(comm, &impl->rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm, &impl->size), "MPI_Comm_size");
  return impl;
}

DeviceGroup& Communicator::Impl::device_group() {
  if (!devices) devices = std::make_unique<DeviceGroup>(comm, rank, size);
  return *devices;
}

Communicator::Communicator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Communicator::Communicator(Communicator&&) noexcept = default;
Communicator& Communicator::operator=(Communicator&&) noexcept = default;
Communicator::~Communicator() = default;

Communicator Communicator::self() { return Communicator(std::make_unique<Impl>()); }

Communicator Communicator::world() {
  if (!mpi_is_running()) {
    if (launched_ranks() > 0) throw InternalError("Communicator::world() needs a living MpiSession");
    return self();
  }
  MPI_Comm comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
  return Communicator(Impl::adopt(comm));
}

int Communicator::rank() const { return impl_->rank; }
int Communicator::size() const { return impl_->size; }

void Communicator::all_to_all_rows(Stream& stream, ConstTensorView send, TensorView recv,
                                   const RowExchange& rows) const {
  const bool cuda = on_cuda("all_to_all_rows", stream, send, recv);
  check_same_rows("all_to_all_rows", send, recv);
  check_ranges("send", rows.send_begin, rows.send_rows, size(), send.dim(0));
  check_ranges("recv", rows.recv_begin, rows.recv_rows, size(), recv.dim(0));
  const std::int64_t row_bytes = row_numel(send.shape) * size_bytes(send.dtype);
  const auto self = static_cast<std::size_t>(rank());
  if (rows.send_rows[self] != rows.recv_rows[self])
    throw ShapeError("all_to_all_rows: this rank sends itself " + std::to_string(rows.send_rows[self]) +
                     " rows and expects " + std::to_string(rows.recv_rows[self]));
  if (row_bytes == 0) return;  // the row shape is the same on every rank, so all of them leave here
  if (cuda) return impl_->device_group().all_to_all_rows(stream, send.data, recv.data, row_bytes, rows);
  if (size() == 1) {
    if (rows.send_rows[0] > 0)
      std::memcpy(static_cast<char*>(recv.data) + rows.recv_begin[0] * row_bytes,
                  static_cast<const char*>(send.data) + rows.send_begin[0] * row_bytes,
                  static_cast<std::size_t>(rows.send_rows[0] * row_bytes));
    return;
  }
  const RowType row(row_bytes);
  const std::vector<int> send_begin = to_ints(rows.send_begin, "rows before a send");
  const std::vector<int> send_rows = to_ints(rows.send_rows, "rows to send");
  const std::vector<int> recv_begin = to_ints(rows.recv_begin, "rows before a receive");
  const std::vector<int> recv_rows = to_ints(rows.recv_rows, "rows to receive");
  check_mpi(MPI_Alltoallv(send.data, send_rows.data(), send_begin.data(), row.get(), recv.data,
                          recv_rows.data(), recv_begin.data(), row.get(), impl_->comm),
            "MPI_Alltoallv");
}

void Communicator::all_gather(Stream& stream, ConstTensorView in, TensorView out) const {
  const bool cuda = on_cuda("all_gather", stream, in, out);
  check_same_rows("all_gather", in, out);
  if (out.dim(0) != in.dim(0) * size())
    throw ShapeError("all_gather: " + std::to_string(size()) + " times the rows of " + to_string(in.shape) +
                     " do not give " + to_string(out.shape));
  if (in.size_bytes() == 0) return;
  if (cuda) return impl_->device_group().all_gather(stream, in.data, out.data, in.size_bytes());
  if (size() == 1) {
    std::memcpy(out.data, in.data, static_cast<std::size_t>(in.size_bytes()));
    return;
  }
  const RowType row(row_numel(in.shape) * size_bytes(in.dtype));
  const int rows = to_int(in.dim(0), "rows to gather");
  check_mpi(MPI_Allgather(in.data, rows, row.get(), out.data, rows, row.get(), impl_->comm), "MPI_Allgather");
}

void Communicator::Impl::check_root(int root) const {
  if (root < 0 || root >= size)
    throw InternalError("broadcast from rank " + std::to_string(root) + " of a group of " +
                        std::to_string(size));
}

void Communicator::Impl::broadcast_bytes(char* data, std::int64_t num_bytes, int root) const {
  check_root(root);
  if (size == 1) return;
  for (std::int64_t done = 0; done < num_bytes; done += kPieceBytes)
    check_mpi(MPI_Bcast(data + done, static_cast<int>(std::min(kPieceBytes, num_bytes - done)), MPI_BYTE,
                        root, comm),
              "MPI_Bcast");
}

void Communicator::broadcast(Stream& stream, TensorView tensor, int root) const {
  if (on_cuda("broadcast", stream, tensor, tensor)) {
    impl_->check_root(root);
    if (tensor.size_bytes() > 0)
      impl_->device_group().broadcast(stream, tensor.data, tensor.size_bytes(), root);
    return;
  }
  impl_->broadcast_bytes(static_cast<char*>(tensor.data), tensor.size_bytes(), root);
}

std::string Communicator::broadcast(const std::string& text, int root) const {
  std::string result = text;
  auto num_bytes = static_cast<std::int64_t>(text.size());
  impl_->broadcast_bytes(reinterpret_cast<char*>(&num_bytes), sizeof num_bytes, root);
  result.resize(static_cast<std::size_t>(num_bytes));
  impl_->broadcast_bytes(result.data(), num_bytes, root);
  return result;
}

void Communicator::barrier() const {
  if (size() > 1) check_mpi(MPI_Barrier(impl_->comm), "MPI_Barrier");
}

bool Communicator::all_agree(bool ok) const {
  if (size() == 1) return ok;
  const int mine = ok ? 1 : 0;
  int all = 0;
  check_mpi(MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, impl_->comm), "MPI_Allreduce");
  return all != 0;
}

Communicator Communicator::split(int color, int key) const {
  if (color < 0) throw InternalError("split: color " + std::to_string(color) + " is negative");
  if (impl_->comm == MPI_COMM_NULL) return self();
  MPI_Comm part = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(impl_->comm, color, key, &part), "MPI_Comm_split");
  return Communicator(Impl::adopt(part));
}

int Communicator::ranks_on_host() const {
  if (impl_->comm == MPI_COMM_NULL) return 1;
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(impl_->comm, MPI_COMM_TYPE_SHARED, impl_->rank, MPI_INFO_NULL, &host),
            "MPI_Comm_split_type");
  int size = 1;
  check_mpi(MPI_Comm_size(host, &size), "MPI_Comm_size");
  check_mpi(MPI_Comm_free(&host), "MPI_Comm_free");
  return size;
}

}  // namespace moecollab
