// Collectives on device tensors equal those on host tensors, bit for bit, and run in the order of their
// stream. Skipped where the ranks have no CUDA device each.
#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "comm_dist/exchange_plan.hpp"
#include "moecollab/comm/communicator.hpp"
#include "moecollab/core/device.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab {
namespace {

class DeviceRows : public testing::Test {
 protected:
  void SetUp() override {
    if (!built_with_cuda()) GTEST_SKIP() << cuda_devices().why_none;
    try {
      world.use_local_cuda_device();
    } catch (const UsageError& error) {
      GTEST_SKIP() << error.what();
    }
  }

  const Communicator world = Communicator::world();
};

bool is_emulated() { return cuda_device_info(0).name == "emulated device"; }

// Values of many magnitudes, so that another order of additions gives other bits.
Tensor make_values(DType dtype, const Shape& shape, int seed) {
  Tensor tensor(dtype, shape);
  std::mt19937 random(static_cast<unsigned>(seed));
  const auto value = [&] {
    return (static_cast<double>(random()) - 2e9) * static_cast<double>(1 << (random() % 16)) * 1e-9;
  };
  for (std::int64_t i = 0, n = tensor.view().numel(); i < n; ++i) switch (dtype) {
      case DType::f32:
        tensor.view().as<float>()[i] = static_cast<float>(value());
        break;
      case DType::f64:
        tensor.view().as<double>()[i] = value();
        break;
      case DType::i64:
        tensor.view().as<std::int64_t>()[i] = static_cast<std::int64_t>(random()) << 20;
        break;
      case DType::bf16:
        tensor.view().as<BFloat16>()[i] = BFloat16(static_cast<float>(value()));
        break;
      default:
        tensor.view().as<std::uint8_t>()[i] = static_cast<std::uint8_t>(random());
    }
  return tensor;
}

Tensor to_device(const Tensor& from) {
  Tensor to(from.dtype(), from.shape(), Device::cuda);
  copy_convert(from.view(), to.view());
  return to;
}

void expect_same_bytes(ConstTensorView device, ConstTensorView host, const std::string& what) {
  Tensor storage;
  const ConstTensorView got = on_host(device, storage);
  ASSERT_EQ(got.size_bytes(), host.size_bytes());
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < host.size_bytes(); ++i)
    wrong += static_cast<const char*>(got.data)[i] != static_cast<const char*>(host.data)[i];
  EXPECT_EQ(wrong, 0) << "bytes differ of " << host.size_bytes() << ": " << what;
}

void exchange_on_both(const Communicator& comm, DType dtype, std::int64_t row, int seed, std::int64_t scale) {
  const Exchange e = plan_exchange(comm.rank(), comm.size(), seed, scale, 2);
  const Tensor send = make_values(dtype, {e.send_total, row}, comm.rank() * 100 + seed);
  const Tensor recv = make_values(dtype, {e.recv_total, row}, 7);  // what is not received stays as it is
  const Tensor device_send = to_device(send), device_recv = to_device(recv);
  Stream cpu, stream(Device::cuda);
  comm.all_to_all_rows(cpu, send.view(), recv.view(), e.rows());
  comm.all_to_all_rows(stream, device_send.view(), device_recv.view(), e.rows());
  stream.synchronize();
  expect_same_bytes(device_recv.view(), recv.view(),
                    "round " + std::to_string(seed) + ", " + std::to_string(row) + " " + to_string(dtype));
  expect_same_bytes(device_send.view(), send.view(), "what was sent");
}

TEST_F(DeviceRows, AllToAll) {
  for (int seed = 0; seed < 6; ++seed) {
    for (const std::int64_t row : {1, 7, 64, 4099}) exchange_on_both(world, DType::u8, row, seed, 1);
    exchange_on_both(world, DType::bf16, 33, seed, 40);
    exchange_on_both(world, DType::f32, 1031, seed, 25);
  }
}

TEST_F(DeviceRows, AllToAllWithoutAnyRow) {
  Stream stream(Device::cuda);
  const std::vector<std::int64_t> zeros(static_cast<std::size_t>(world.size()), 0);
  for (const std::int64_t row : {8, 0})
    world.all_to_all_rows(stream, ConstTensorView(nullptr, DType::f32, Device::cuda, {0, row}),
                          TensorView(nullptr, DType::f32, Device::cuda, {0, row}),
                          {zeros, zeros, zeros, zeros});
  stream.synchronize();
}

void sum_on_both(const Communicator& comm, DType dtype, std::int64_t n) {
  const Tensor host = make_values(dtype, {n}, comm.rank() * 13 + 1);
  const Tensor device = to_device(host);
  Stream cpu, stream(Device::cuda);
  comm.all_reduce_sum(cpu, host.view());
  comm.all_reduce_sum(stream, device.view());
  stream.synchronize();
  expect_same_bytes(
      device.view(), host.view(),
      "sum of " + std::to_string(n) + " " + to_string(dtype) + " over " + std::to_string(comm.size()));
}

// Around the switch from gathering (16 KiB) to sharing, around a block of the kernel, fewer elements than
// ranks.
TEST_F(DeviceRows, AllReduceSum) {
  for (const std::int64_t n : {0, 1, 3, 1023, 1025, 2048, 2049, 4096, 4097, 100003})
    for (const DType dtype : {DType::f32, DType::f64, DType::i64}) sum_on_both(world, dtype, n);
}

TEST_F(DeviceRows, AllReduceSumInPieces) {  // of 64 MiB, and a short last one
  if (world.size() != 3) GTEST_SKIP() << "one group size is enough";
  sum_on_both(world, DType::f32, (std::int64_t{16} << 20) + 1003);
}

TEST_F(DeviceRows, AllGather) {
  for (const std::int64_t rows : {0, 1, 3})
    for (const std::int64_t row : {0, 1, 4099}) {
      const Tensor in = make_values(DType::bf16, {rows, row}, world.rank() + 5);
      const Tensor out(DType::bf16, {rows * world.size(), row});
      const Tensor device_in = to_device(in), device_out = to_device(out);
      Stream cpu, stream(Device::cuda);
      world.all_gather(cpu, in.view(), out.view());
      world.all_gather(stream, device_in.view(), device_out.view());
      stream.synchronize();
      expect_same_bytes(device_out.view(), out.view(),
                        std::to_string(rows) + " rows of " + std::to_string(row));
    }
}

TEST_F(DeviceRows, BroadcastFromAnyRoot) {
  for (int root = 0; root < world.size(); ++root)
    for (const std::int64_t n : {0, 1, 30001}) {
      const Tensor host = make_values(DType::u8, {n}, world.rank() * 3 + 2);
      const Tensor device = to_device(host);
      Stream cpu, stream(Device::cuda);
      world.broadcast(cpu, host.view(), root);
      world.broadcast(stream, device.view(), root);
      stream.synchronize();
      expect_same_bytes(device.view(), host.view(), std::to_string(n) + " bytes of " + std::to_string(root));
    }
}

TEST_F(DeviceRows, SplitGroups) {
  const Communicator part = world.split(world.rank() % 2, -world.rank());  // reversed order inside a colour
  sum_on_both(part, DType::f32, 5000);
  exchange_on_both(part, DType::f32, 9, 2, 3);
  exchange_on_both(Communicator::self(), DType::f32, 9, 1, 3);
  sum_on_both(Communicator::self(), DType::f32, 5000);
}

// Every collective once, on whichever device. Nothing waits on the host between the calls: each sees what the
// one before it in its stream left, and what was sent may be overwritten at once.
void run_chain(const Communicator& comm, Stream& stream, TensorView x, TensorView y, TensorView all) {
  std::vector<std::int64_t> begin(static_cast<std::size_t>(comm.size())), ones(begin.size(), 1);
  std::iota(begin.begin(), begin.end(), 0);
  comm.all_reduce_sum(stream, x);
  comm.all_to_all_rows(stream, x, y, {begin, ones, begin, ones});
  fill_zero(stream, x);
  comm.all_reduce_sum(stream, x);
  comm.broadcast(stream, y.rows(0, 1), comm.size() - 1);
  comm.all_reduce_sum(stream, y);
  comm.all_gather(stream, y, all);
  fill_zero(stream, y.rows(0, 1));
}

TEST_F(DeviceRows, RunInTheOrderOfTheirStream) {
  const std::int64_t size = world.size();
  const Tensor x = make_values(DType::f32, {size, 6001}, world.rank());
  const Tensor y(DType::f32, {size, 6001}), all(DType::f32, {size * size, 6001});
  const Tensor device_x(DType::f32, x.shape(), Device::cuda), device_y(DType::f32, y.shape(), Device::cuda),
      device_all(DType::f32, all.shape(), Device::cuda);
  Stream cpu, stream(Device::cuda);
  copy(stream, x.view(), device_x.view());
  run_chain(world, stream, device_x.view(), device_y.view(), device_all.view());
  stream.synchronize();
  run_chain(world, cpu, x.view(), y.view(), all.view());
  expect_same_bytes(device_all.view(), all.view(), "the end of the chain");
  expect_same_bytes(device_y.view(), y.view(), "what was gathered");
  expect_same_bytes(device_x.view(), x.view(), "a sum of zeros");
}

TEST_F(DeviceRows, TwoGroupsTakeTurnsOnTwoStreams) {
  const Communicator part = world.split(world.rank() % 2, world.rank());
  const Tensor host = make_values(DType::f32, {3001}, world.rank());
  const Tensor device = to_device(host);
  Stream cpu, a(Device::cuda), b(Device::cuda);
  for (int round = 0; round < 3; ++round) {
    world.all_reduce_sum(a, device.view());
    b.wait(a.record());
    part.all_reduce_sum(b, device.view());
    a.wait(b.record());
    world.all_reduce_sum(cpu, host.view());
    part.all_reduce_sum(cpu, host.view());
  }
  a.synchronize();
  expect_same_bytes(device.view(), host.view(), "sums of two groups");
}

TEST_F(DeviceRows, HostTensorsTravelByMpiWhateverTheStream) {
  Stream stream(Device::cuda);
  const Tensor x(DType::i64, {1});
  x.view().as<std::int64_t>()[0] = world.rank();
  world.all_reduce_sum(stream, x.view());
  EXPECT_EQ(x.view().as<std::int64_t>()[0], world.size() * (world.size() - 1) / 2);
  x.view().as<std::int64_t>()[0] = world.rank();
  world.all_reduce_max(stream, x.view());
  EXPECT_EQ(x.view().as<std::int64_t>()[0], world.size() - 1);
  exchange_on_both(world, DType::u8, 3, 0, 1);
}

TEST_F(DeviceRows, MixedDevicesAreRefused) {  // before anything is sent
  Stream cpu, stream(Device::cuda);
  const std::int64_t size = world.size();
  const Tensor host(DType::f32, {size, 2}), device(DType::f32, {size, 2}, Device::cuda);
  const std::vector<std::int64_t> zeros(static_cast<std::size_t>(size), 0);
  const RowExchange none{zeros, zeros, zeros, zeros};
  EXPECT_THROW(world.all_to_all_rows(stream, host.view(), device.view(), none), InternalError);
  EXPECT_THROW(world.all_to_all_rows(stream, device.view(), host.view(), none), InternalError);
  EXPECT_THROW(world.all_gather(stream, host.view().rows(0, 1), device.view()), InternalError);
  EXPECT_THROW(world.all_to_all_rows(cpu, device.view(), device.view(), none), InternalError);
  EXPECT_THROW(world.all_reduce_sum(cpu, device.view()), InternalError);
  EXPECT_THROW(world.all_reduce_max(stream, device.view()), InternalError);
  EXPECT_THROW(world.broadcast(stream, device.view(), world.size()), InternalError);
  EXPECT_THROW(world.all_reduce_sum(stream, Tensor(DType::bf16, {3}, Device::cuda).view()), DTypeError);
}

class Setting {  // an environment variable, for one scope
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    setenv(name, value.c_str(), 1);
  }
  ~Setting() { old_.empty() ? unsetenv(name_) : setenv(name_, old_.c_str(), 1); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
  std::string old_;
};

TEST_F(DeviceRows, EveryRankGetsADeviceOfItsOwn) {
  if (!is_emulated()) GTEST_SKIP() << "the number of devices can be set for emulated ones only";
  EXPECT_EQ(world.use_local_cuda_device(), world.rank());
  const Communicator part = world.split(world.rank() % 2, world.rank());
  EXPECT_EQ(part.use_local_cuda_device(), world.rank() / 2);
  EXPECT_EQ(Communicator::self().use_local_cuda_device(), 0);
  if (world.size() > 1) {
    const Setting fewer("CUDASIM_DEVICES", std::to_string(world.size() - 1));
    try {
      world.use_local_cuda_device();
      ADD_FAILURE() << "too few devices were accepted";
    } catch (const UsageError& error) {  // on every rank, with the same numbers
      const std::string text = error.what();
      EXPECT_NE(text.find("the " + std::to_string(world.size()) + " ranks on host"), std::string::npos)
          << text;
      EXPECT_NE(text.find("see " + std::to_string(world.size() - 1) + " in all"), std::string::npos) << text;
    }
  }
  {
    const Setting none("CUDASIM_DEVICES", "0");
    EXPECT_THROW(world.use_local_cuda_device(), UsageError);
  }
  EXPECT_EQ(world.use_local_cuda_device(), world.rank());
}

TEST_F(DeviceRows, TwoRanksOnOneDeviceAreRefused) {
  if (!is_emulated() || world.size() == 1) GTEST_SKIP() << "needs emulated devices and two ranks";
  use_cuda_device(0);
  {
    Stream stream(Device::cuda);
    const Tensor x(DType::f32, {4}, Device::cuda);
    EXPECT_THROW(world.all_reduce_sum(stream, x.view()), InternalError);
  }
  world.use_local_cuda_device();
}

// On devices these hang or are undefined; the emulated ones tell.
TEST_F(DeviceRows, WrongCountsAreReported) {
  if (!is_emulated() || world.size() != 2) GTEST_SKIP() << "needs emulated devices; one group size is enough";
  const Setting soon("CUDASIM_NCCL_LIMIT_S", "0.3");
  const auto peer = static_cast<std::size_t>(1 - world.rank());
  const std::vector<std::int64_t> zeros(2, 0);
  struct Case {
    std::int64_t sent, expected;
    int who_notices;
  };
  for (const auto& [sent, expected, who_notices] :
       {Case{1, 0, 0}, Case{0, 1, 1}, Case{6, 2, 1}, Case{2, 6, 1}}) {
    const Communicator pair = world.split(0, world.rank());
    Stream stream(Device::cuda);
    const Tensor send(DType::u8, {8, 4}, Device::cuda), recv(DType::u8, {8, 4}, Device::cuda);
    std::vector<std::int64_t> out(2, 0), in(2, 0);
    (world.rank() == 0 ? out : in)[peer] = world.rank() == 0 ? sent : expected;
    const auto run = [&] {
      pair.all_to_all_rows(stream, send.view(), recv.view(), {zeros, out, zeros, in});
      stream.synchronize();
      pair.all_to_all_rows(stream, send.view(), recv.view(),
                           {zeros, zeros, zeros, zeros});  // tells of earlier errors
      stream.synchronize();
    };
    if (world.rank() == who_notices)
      EXPECT_THROW(run(), InternalError) << sent << " rows sent, " << expected << " expected";
    else
      run();
  }
}

}  // namespace
}  // namespace moecollab
