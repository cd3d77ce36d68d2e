// Collectives over the ranks of the job, for any number of them. Every expected value is computed from the
// rank numbers alone.
#include "moecollab/comm/communicator.hpp"
#include "comm_dist/exchange_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moecollab/core/error.hpp"

namespace moecollab {
namespace {

std::uint8_t byte_at(int from, int to, std::int64_t row, std::int64_t i) {
  return static_cast<std::uint8_t>(from * 101 + to * 31 + row * 7 + i * 3 + 1);
}

// Sends rows of `row_bytes` bytes and compares every byte received, and every byte of the gaps.
void exchange_and_check(const Communicator& comm, int seed, std::int64_t row_bytes, std::int64_t scale) {
  Stream stream;
  const int rank = comm.rank();
  const Exchange e = plan_exchange(rank, comm.size(), seed, scale, 2);
  const Tensor send(DType::u8, {e.send_total, row_bytes});
  const Tensor recv(DType::u8, {e.recv_total, row_bytes});
  std::vector<std::uint8_t> expected(static_cast<std::size_t>(e.recv_total * row_bytes), 0);
  for (int p = 0; p < comm.size(); ++p) {
    const auto i = static_cast<std::size_t>(p);
    std::uint8_t* out = send.view().as<std::uint8_t>() + e.send_begin[i] * row_bytes;
    for (std::int64_t r = 0; r < e.send_rows[i]; ++r)
      for (std::int64_t b = 0; b < row_bytes; ++b) *out++ = byte_at(rank, p, r, b);
    std::uint8_t* in = expected.data() + e.recv_begin[i] * row_bytes;
    for (std::int64_t r = 0; r < e.recv_rows[i]; ++r)
      for (std::int64_t b = 0; b < row_bytes; ++b) *in++ = byte_at(p, rank, r, b);
  }
  comm.all_to_all_rows(stream, send.view(), recv.view(), e.rows());
  const std::uint8_t* got = recv.view().as<std::uint8_t>();
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), got))
      << "round " << seed << ", rows of " << row_bytes << " bytes";
}

TEST(Communicator, AllToAllDeliversUnevenRows) {
  const Communicator comm = Communicator::world();
  for (int seed = 0; seed < 6; ++seed)
    for (const std::int64_t row_bytes : {1, 7, 64, 4099}) exchange_and_check(comm, seed, row_bytes, 1);
}

TEST(Communicator, AllToAllDeliversLongMessages) {  // past every eager limit, 64 KiB pipes and fragments
  const Communicator comm = Communicator::world();
  for (int seed = 0; seed < 3; ++seed) exchange_and_check(comm, seed, 1031, 500);
}

TEST(Communicator, AllToAllWithoutAnyRow) {
  const Communicator comm = Communicator::world();
  Stream stream;
  const std::vector<std::int64_t> zeros(static_cast<std::size_t>(comm.size()), 0);
  comm.all_to_all_rows(stream, ConstTensorView(nullptr, DType::f32, Device::cpu, {0, 8}),
                       TensorView(nullptr, DType::f32, Device::cpu, {0, 8}), {zeros, zeros, zeros, zeros});
}

TEST(Communicator, AllToAllCountsRowsNotBytes) {  // begins past 2^31 bytes inside the tensor
  const Communicator comm = Communicator::world();
  if (comm.size() != 2) GTEST_SKIP() << "one group size is enough";
  Stream stream;
  // Only two rows of the 2.25 GiB are ever touched; the pages between are never there.
  const std::int64_t row_bytes = std::int64_t{1} << 20;
  const std::int64_t last = 2303;
  const std::unique_ptr<std::uint8_t[]> memory(new std::uint8_t[static_cast<std::size_t>(2304 * row_bytes)]);
  std::uint8_t* far_row = memory.get() + last * row_bytes;
  std::fill_n(far_row, row_bytes, static_cast<std::uint8_t>(17 + comm.rank()));
  const ConstTensorView send(memory.get(), DType::u8, Device::cpu, {2304, row_bytes});
  const Tensor recv(DType::u8, {1, row_bytes});
  const auto peer = static_cast<std::size_t>(1 - comm.rank());
  std::vector<std::int64_t> begin(2, 0), rows(2, 0), zeros(2, 0);
  begin[peer] = last;
  rows[peer] = 1;
  comm.all_to_all_rows(stream, send, recv.view(), {begin, rows, zeros, rows});
  EXPECT_EQ(recv.view().as<std::uint8_t>()[0], 17 + static_cast<int>(peer));
  EXPECT_EQ(recv.view().as<std::uint8_t>()[row_bytes - 1], 17 + static_cast<int>(peer));
}

TEST(Communicator, RowCountsPastIntAreRefused) {
  const Communicator comm = Communicator::world();
  if (comm.size() == 1) GTEST_SKIP() << "a group of one copies and knows no such limit";
  Stream stream;
  std::uint8_t byte = 0;
  const std::int64_t many = std::int64_t{1} << 31;
  const TensorView tensor(&byte, DType::u8, Device::cpu, {many});  // refused before any byte is read
  const std::vector<std::int64_t> zeros(static_cast<std::size_t>(comm.size()), 0);
  std::vector<std::int64_t> rows = zeros;
  rows[static_cast<std::size_t>(comm.rank() == 0 ? 1 : 0)] = many;
  EXPECT_THROW(comm.all_to_all_rows(stream, tensor, tensor, {zeros, rows, zeros, zeros}), InternalError);
}

template <class T>
void expect_rank_order_sum(const Communicator& comm, std::int64_t n) {
  Stream stream;
  const auto value = [](int rank, std::int64_t i) {
    return static_cast<T>((rank + 1) * 1.1e3 / static_cast<double>(i % 1013 + 1) *
                          ((rank + i) % 3 == 0 ? -1 : 1));
  };
  const Tensor x(DTypeOf<T>::value, {n});
  T* data = x.view().template as<T>();
  for (std::int64_t i = 0; i < n; ++i) data[i] = value(comm.rank(), i);
  comm.all_reduce_sum(stream, x.view());
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    T expected = value(0, i);
    for (int p = 1; p < comm.size(); ++p) expected += value(p, i);
    wrong += data[i] != expected;  // bits: the order of the additions is part of the contract
  }
  EXPECT_EQ(wrong, 0) << "of " << n;
}

TEST(Communicator, AllReduceSumAddsInRankOrder) {
  const Communicator comm = Communicator::world();
  // Around the switch from gathering (4 KiB) to sharing, around a piece (1 MiB), and fewer elements than
  // ranks.
  for (const std::int64_t n : {0, 1, 3, 511, 512, 513, 1024, 1025, 131071, 131073, 262145, 600001}) {
    expect_rank_order_sum<float>(comm, n);
    expect_rank_order_sum<double>(comm, n);
    expect_rank_order_sum<std::int64_t>(comm, n);
  }
}

TEST(Communicator, AllReduceSumDoesNotDependOnThePosition) {
  const Communicator comm = Communicator::world();
  Stream stream;
  const std::int64_t n = 300000;
  const Tensor x(DType::f32, {n});
  float* data = x.view().as<float>();
  for (std::int64_t i = 0; i < n; ++i) data[i] = 0.1f / static_cast<float>(comm.rank() + 3);
  comm.all_reduce_sum(stream, x.view());
  const Tensor one(DType::f32, {1});
  one.view().as<float>()[0] = 0.1f / static_cast<float>(comm.rank() + 3);
  comm.all_reduce_sum(stream, one.view());
  for (const std::int64_t i : {std::int64_t{0}, n / 3, n / 2, n - 1})
    EXPECT_EQ(std::bit_cast<std::uint32_t>(data[i]), std::bit_cast<std::uint32_t>(one.view().as<float>()[0]));
}

TEST(Communicator, AllReduceMax) {
  const Communicator comm = Communicator::world();
  Stream stream;
  const Tensor x(DType::i64, {3});
  std::int64_t* data = x.view().as<std::int64_t>();
  data[0] = comm.rank(), data[1] = -comm.rank(), data[2] = comm.rank() == 0 ? 9 : -9;
  comm.all_reduce_max(stream, x.view());
  EXPECT_EQ(data[0], comm.size() - 1);
  EXPECT_EQ(data[1], 0);
  EXPECT_EQ(data[2], 9);
}

TEST(Communicator, AllReduceMaxKeepsNaNOfAnyRank) {
  const Communicator comm = Communicator::world();
  Stream stream;
  for (int bad = 0; bad < comm.size(); ++bad) {
    const Tensor x(DType::f64, {1});
    double& value = x.view().as<double>()[0];
    value = comm.rank() == bad ? std::numeric_limits<double>::quiet_NaN() : 1.0;
    comm.all_reduce_max(stream, x.view());
    EXPECT_NE(value, value) << "NaN on rank " << bad;
  }
}

TEST(Communicator, AllGatherOrdersByRank) {
  const Communicator comm = Communicator::world();
  Stream stream;
  const Tensor in(DType::i32, {2, 3});
  const Tensor out(DType::i32, {2 * comm.size(), 3});
  for (int i = 0; i < 6; ++i) in.view().as<std::int32_t>()[i] = comm.rank() * 10 + i;
  comm.all_gather(stream, in.view(), out.view());
  for (int i = 0; i < 6 * comm.size(); ++i) EXPECT_EQ(out.view().as<std::int32_t>()[i], i / 6 * 10 + i % 6);
}

TEST(Communicator, BroadcastsTensorsAndTextFromAnyRoot) {
  const Communicator comm = Communicator::world();
  Stream stream;
  for (int root = 0; root < comm.size(); ++root) {
    const Tensor x(DType::f32, {30000});
    float* data = x.view().as<float>();
    if (comm.rank() == root)
      for (int i = 0; i < 30000; ++i) data[i] = static_cast<float>(root + i);
    comm.broadcast(stream, x.view(), root);
    EXPECT_EQ(data[29999], static_cast<float>(root + 29999));
    const std::string text = std::string(static_cast<std::size_t>(70000 * root), 'x') + std::string("\0é", 3);
    EXPECT_EQ(comm.broadcast(comm.rank() == root ? text : "stale", root), text);
    EXPECT_EQ(comm.broadcast(comm.rank() == root ? "" : "stale", root), "");
  }
}

TEST(Communicator, AgreesOnlyWhenAllDo) {
  const Communicator comm = Communicator::world();
  EXPECT_TRUE(comm.all_agree(true));
  for (int no = 0; no < comm.size(); ++no) EXPECT_FALSE(comm.all_agree(comm.rank() != no));
}

TEST(Communicator, SplitGroupsAreIndependent) {
  const Communicator comm = Communicator::world();
  Stream stream;
  const Communicator part = comm.split(comm.rank() % 2, -comm.rank());  // reversed order inside a colour
  const int color = comm.rank() % 2;
  const int expected_size = (comm.size() + 1 - color) / 2;
  EXPECT_EQ(part.size(), expected_size);
  EXPECT_EQ(part.rank(), expected_size - 1 - comm.rank() / 2);
  const Tensor x(DType::i64, {1});
  x.view().as<std::int64_t>()[0] = comm.rank();
  part.all_reduce_sum(stream, x.view());
  std::int64_t expected = 0;
  for (int r = color; r < comm.size(); r += 2) expected += r;
  EXPECT_EQ(x.view().as<std::int64_t>()[0], expected);
  exchange_and_check(part, 2, 33, 3);
}

TEST(Communicator, CountsTheRanksOfTheGroupOnThisHost) {  // the tests run on one
  const Communicator comm = Communicator::world();
  EXPECT_EQ(comm.ranks_on_host(), comm.size());
  EXPECT_EQ(comm.split(comm.rank(), 0).ranks_on_host(), 1);
}

TEST(Communicator, MovedGroupsWork) {
  Communicator comm = Communicator::world();
  Communicator other = std::move(comm);
  comm = other.split(0, other.rank());
  EXPECT_EQ(comm.size(), other.size());
  EXPECT_TRUE(comm.all_agree(true));
}

TEST(Communicator, WrongCountsAreTypedErrorsNotDeaths) {  // a message longer than its receiver allows
  const Communicator comm = Communicator::world();
  if (comm.size() != 2) GTEST_SKIP() << "one group size is enough";
  Stream stream;
  const Communicator pair = comm.split(0, comm.rank());  // its own group: the failed call may leave it torn
  const Tensor send(DType::u8, {8, 4});
  const Tensor recv(DType::u8, {8, 4});
  const auto peer = static_cast<std::size_t>(1 - comm.rank());
  std::vector<std::int64_t> zeros(2, 0), out(2, 0), in(2, 0);
  out[peer] = 6;
  in[peer] = 2;
  EXPECT_THROW(pair.all_to_all_rows(stream, send.view(), recv.view(), {zeros, out, zeros, in}),
               InternalError);
}

}  // namespace
}  // namespace moecollab
