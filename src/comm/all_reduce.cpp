// Sums and maxima in rank order: an element is ((rank 0 + rank 1) + rank 2) + ... on every rank, whatever the
// length, the MPI library, its choice of algorithm and the placement of ranks on nodes. (MPI only advises
// its implementers that MPI_Allreduce should give the same bits twice.)
#include <mpi.h>

#include <algorithm>

#include "comm/communicator_impl.hpp"
#include "comm/mpi_check.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab {

namespace {

constexpr std::int64_t kGatherBytes = 4096;                  // up to here everyone receives everything
constexpr std::int64_t kPieceBytes = std::int64_t{1} << 20;  // of the tensor per round: bounds the scratch

struct Sum {
  template <class T>
  static T apply(T a, T b) {
    return a + b;
  }
};
struct Max {  // a NaN on any rank wins, so that a bad value cannot hide
  template <class T>
  static T apply(T a, T b) {
    return b > a || b != b ? b : a;
  }
};

// out[i] = parts[0][i] op parts[1][i] op ...
template <class T, class Op>
void reduce_in_rank_order(const T* parts, int num_parts, std::int64_t n, T* out) {
  std::copy_n(parts, n, out);
  for (int p = 1; p < num_parts; ++p) {
    const T* part = parts + p * n;
    for (std::int64_t i = 0; i < n; ++i) out[i] = Op::apply(out[i], part[i]);
  }
}

template <class T>
MPI_Datatype mpi_type();
template <>
MPI_Datatype mpi_type<float>() {
  return MPI_FLOAT;
}
template <>
MPI_Datatype mpi_type<double>() {
  return MPI_DOUBLE;
}
template <>
MPI_Datatype mpi_type<std::int64_t>() {
  return MPI_INT64_T;
}

}  // namespace

// Short pieces are gathered and reduced by everyone; of longer ones rank r reduces the r-th share, and the
// shares are gathered: 2 (P - 1) / P of the piece through each rank, as a ring would send.
template <class T, class Op>
void Communicator::Impl::reduce_piece(T* data, std::int64_t n) {
  const MPI_Datatype type = mpi_type<T>();
  const std::int64_t n_bytes = n * static_cast<std::int64_t>(sizeof(T));
  const int n_int = to_int(n, "elements to reduce");
  T* parts = reinterpret_cast<T*>(scratch.data());
  if (n_bytes <= kGatherBytes) {
    check_mpi(MPI_Allgather(data, n_int, type, parts, n_int, type, comm), "MPI_Allgather");
    reduce_in_rank_order<T, Op>(parts, size, n, data);
    return;
  }
  const auto begin = [&](int r) { return static_cast<int>(n * r / size); };
  const int mine = begin(rank + 1) - begin(rank);
  for (int r = 0; r < size; ++r) {
    const auto p = static_cast<std::size_t>(r);
    share_begin[p] = begin(r);
    share_count[p] = begin(r + 1) - begin(r);
    parts_begin[p] = r * mine;
    parts_count[p] = mine;
  }
  check_mpi(MPI_Alltoallv(data, share_count.data(), share_begin.data(), type, parts, parts_count.data(),
                          parts_begin.data(), type, comm),
            "MPI_Alltoallv");
  reduce_in_rank_order<T, Op>(parts, size, mine, data + begin(rank));
  check_mpi(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, data, share_count.data(), share_begin.data(),
                           type, comm),
            "MPI_Allgatherv");
}

template <class T, class Op>
void Communicator::Impl::reduce_pieces(T* data, std::int64_t n) {
  constexpr auto kPiece = kPieceBytes / static_cast<std::int64_t>(sizeof(T));
  const auto ranks = static_cast<std::size_t>(size);
  share_begin.resize(ranks), share_count.resize(ranks), parts_begin.resize(ranks), parts_count.resize(ranks);
  // One share more than a piece: shares differ by one element. Short pieces arrive whole from every rank.
  scratch.resize(std::max(static_cast<std::size_t>(std::min(n, kPiece) + size) * sizeof(T),
                          ranks * static_cast<std::size_t>(kGatherBytes)));
  for (std::int64_t done = 0; done < n; done += kPiece)
    reduce_piece<T, Op>(data + done, std::min(kPiece, n - done));
}

void Communicator::Impl::all_reduce(const char* call, Stream& stream, TensorView tensor,
                                    Reduction reduction) {
  const bool sum = reduction == Reduction::sum;
  const std::int64_t n = tensor.numel();
  if (tensor.dtype != DType::f32 && tensor.dtype != DType::f64 && tensor.dtype != DType::i64)
    throw DTypeError(std::string(call) + ": f32, f64 and i64 can be reduced, not " + to_string(tensor.dtype));
  if (on_cuda(call, stream, tensor, tensor)) {
    if (!sum) throw InternalError(std::string(call) + ": maxima are taken of host tensors only");
    if (n > 0) device_group().all_reduce_sum(stream, tensor);
    return;
  }
  if (size == 1) return;
  const auto reduce = [&]<class T>(T* data) {
    sum ? reduce_pieces<T, Sum>(data, n) : reduce_pieces<T, Max>(data, n);
  };
  if (tensor.dtype == DType::f32) return reduce(tensor.as<float>());
  if (tensor.dtype == DType::f64) return reduce(tensor.as<double>());
  reduce(tensor.as<std::int64_t>());
}

void Communicator::all_reduce_sum(Stream& stream, TensorView tensor) const {
  impl_->all_reduce("all_reduce_sum", stream, tensor, Reduction::sum);
}
void Communicator::all_reduce_max(Stream& stream, TensorView tensor) const {
  impl_->all_reduce("all_reduce_max", stream, tensor, Reduction::max);
}

}  // namespace moecollab
