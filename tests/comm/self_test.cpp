// A group of one rank without MPI: the same rules as any other group.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <vector>

#include "moecollab/comm/communicator.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab {
namespace {

using Counts = std::vector<std::int64_t>;

struct OneRank {
  Stream stream;
  Communicator comm = Communicator::self();
  void exchange(const Tensor& send, Tensor& recv, const Counts& send_begin, const Counts& send_rows,
                const Counts& recv_begin, const Counts& recv_rows) {
    comm.all_to_all_rows(stream, send.view(), recv.view(), {send_begin, send_rows, recv_begin, recv_rows});
  }
};

TEST(SelfCommunicator, IsAGroupOfOne) {
  const Communicator comm = Communicator::self();
  EXPECT_EQ(comm.rank(), 0);
  EXPECT_EQ(comm.size(), 1);
  EXPECT_TRUE(comm.all_agree(true));
  EXPECT_FALSE(comm.all_agree(false));
  EXPECT_EQ(comm.broadcast("anchor", 0), "anchor");
  comm.barrier();
  EXPECT_EQ(comm.split(3, 5).size(), 1);
}

TEST(SelfCommunicator, WorldIsSelfWithoutALauncher) {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") || std::getenv("PMI_SIZE") || std::getenv("PMIX_RANK"))
    GTEST_SKIP() << "started by a launcher";
  EXPECT_EQ(Communicator::world().size(), 1);
}

TEST(SelfCommunicator, WorldUnderALauncherNeedsASession) {
  if (std::getenv("OMPI_COMM_WORLD_SIZE")) GTEST_SKIP() << "started by a launcher";
  ASSERT_EQ(setenv("OMPI_COMM_WORLD_SIZE", "4", 1), 0);
  EXPECT_THROW(Communicator::world(), InternalError);
  unsetenv("OMPI_COMM_WORLD_SIZE");
}

TEST(SelfCommunicator, AllToAllMovesExactlyItsRows) {
  OneRank one;
  Tensor send(DType::u8, {5, 3});
  Tensor recv(DType::u8, {6, 3});
  for (int i = 0; i < 15; ++i) send.view().as<std::uint8_t>()[i] = static_cast<std::uint8_t>(10 + i);
  one.exchange(send, recv, {2}, {2}, {3}, {2});  // rows 2 and 3 land at rows 3 and 4
  for (int i = 0; i < 18; ++i)
    EXPECT_EQ(recv.view().as<std::uint8_t>()[i], i >= 9 && i < 15 ? 10 + i - 3 : 0) << i;
}

TEST(SelfCommunicator, AllToAllWithoutRowsTouchesNothing) {
  OneRank one;
  Tensor recv(DType::f32, {2, 2});
  one.comm.all_to_all_rows(one.stream, ConstTensorView(nullptr, DType::f32, Device::cpu, {0, 2}), recv.view(),
                           {Counts{0}, Counts{0}, Counts{2}, Counts{0}});
  EXPECT_EQ(recv.view().as<float>()[3], 0.0f);
}

TEST(SelfCommunicator, AllToAllRefusesRowsOutsideTheTensors) {
  OneRank one;
  Tensor send(DType::f32, {4, 2});
  Tensor recv(DType::f32, {4, 2});
  EXPECT_THROW(one.exchange(send, recv, {3}, {2}, {0}, {2}), ShapeError);
  EXPECT_THROW(one.exchange(send, recv, {0}, {2}, {3}, {2}), ShapeError);
  EXPECT_THROW(one.exchange(send, recv, {-1}, {2}, {0}, {2}), ShapeError);
  EXPECT_THROW(one.exchange(send, recv, {0}, {2}, {0}, {1}), ShapeError);
  EXPECT_THROW(one.exchange(send, recv, {0, 0}, {2, 0}, {0}, {2}), ShapeError);
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  EXPECT_THROW(one.exchange(send, recv, {1}, {huge}, {1}, {huge}), ShapeError);  // begin + rows would wrap
}

TEST(SelfCommunicator, AllToAllRefusesUnlikeRows) {
  OneRank one;
  Tensor send(DType::f32, {4, 2});
  Tensor wide(DType::f32, {4, 3});
  Tensor deep(DType::f32, {4, 2, 1});
  Tensor other(DType::i32, {4, 2});
  EXPECT_THROW(one.exchange(send, wide, {0}, {1}, {0}, {1}), ShapeError);
  EXPECT_THROW(one.exchange(send, deep, {0}, {1}, {0}, {1}), ShapeError);
  EXPECT_THROW(one.exchange(send, other, {0}, {1}, {0}, {1}), DTypeError);
}

TEST(SelfCommunicator, RefusesDeviceMemory) {
  OneRank one;
  float x = 0;
  const TensorView device(&x, DType::f32, Device::cuda, {1});
  EXPECT_THROW(one.comm.all_reduce_sum(one.stream, device), InternalError);
  EXPECT_THROW(one.comm.broadcast(one.stream, device, 0), InternalError);
}

TEST(SelfCommunicator, ReductionsKeepTheValueAndRefuseOtherTypes) {
  OneRank one;
  Tensor x(DType::f64, {2});
  x.view().as<double>()[1] = 0.1;
  one.comm.all_reduce_sum(one.stream, x.view());
  one.comm.all_reduce_max(one.stream, x.view());
  EXPECT_EQ(x.view().as<double>()[1], 0.1);
  const Tensor half(DType::bf16, {2});
  EXPECT_THROW(one.comm.all_reduce_sum(one.stream, half.view()), DTypeError);
}

TEST(SelfCommunicator, AllGatherCopiesAndChecksExtents) {
  OneRank one;
  Tensor in(DType::i32, {2, 2});
  Tensor out(DType::i32, {2, 2});
  Tensor more(DType::i32, {4, 2});
  in.view().as<std::int32_t>()[3] = 7;
  one.comm.all_gather(one.stream, in.view(), out.view());
  EXPECT_EQ(out.view().as<std::int32_t>()[3], 7);
  EXPECT_THROW(one.comm.all_gather(one.stream, in.view(), more.view()), ShapeError);
}

TEST(SelfCommunicator, RefusesARootOutsideTheGroup) {
  EXPECT_THROW(Communicator::self().broadcast("text", 1), InternalError);
  EXPECT_THROW(Communicator::self().split(-1, 0), InternalError);
}

}  // namespace
}  // namespace moecollab
