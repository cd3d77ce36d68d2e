// Core on a CUDA device: memory, streams, events, staging, arena, parameter store.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "cuda/device_support.hpp"
#include "moecollab/core/arena.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/core/param_store.hpp"

namespace moecollab::test {
namespace {

class CudaCore : public OnDevice {};

Tensor counted(std::int64_t n, std::int32_t first) {  // first, first + 1, ...
  Tensor t(DType::i32, {n});
  std::iota(t.view().as<std::int32_t>(), t.view().as<std::int32_t>() + n, first);
  return t;
}
std::vector<std::int32_t> values(ConstTensorView t) {
  Tensor storage;
  const ConstTensorView host = on_host(t, storage);
  return {host.as<std::int32_t>(), host.as<std::int32_t>() + host.numel()};
}
std::vector<std::int32_t> numbers(std::int64_t n, std::int32_t first) {
  return values(counted(n, first).view());
}

TEST_F(CudaCore, ThisProcessSeesItsDevice) {
  EXPECT_TRUE(built_with_cuda());
  const CudaDevices devices = cuda_devices();
  EXPECT_TRUE(devices.why_none.empty());
  const CudaDeviceInfo info = cuda_device_info(0);
  EXPECT_FALSE(info.name.empty());
  EXPECT_GE(info.compute_major, 8);
  EXPECT_GT(info.num_multiprocessors, 0);
  EXPECT_GT(info.free_bytes, 0);
  EXPECT_LE(info.free_bytes, info.total_bytes);
  EXPECT_THROW(cuda_device_info(devices.num), UsageError);
  EXPECT_THROW(cuda_device_info(-1), UsageError);
  EXPECT_THROW(use_cuda_device(devices.num), UsageError);
  use_cuda_device(0);
}

TEST_F(CudaCore, MemoryIsZeroAlignedCountedAndReturned) {
  const std::int64_t before = cuda_device_info(0).free_bytes;
  {
    const Tensor t(DType::f32, {2048, 2048}, Device::cuda);
    EXPECT_EQ(t.view().device, Device::cuda);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(t.view().data) % 256, 0u);
    EXPECT_EQ(max_abs(to_host(t.view()).view()), 0.0);
    EXPECT_LE(cuda_device_info(0).free_bytes, before - t.size_bytes());
  }
  EXPECT_GE(cuda_device_info(0).free_bytes, before);
  const Tensor none(DType::f32, {0, 5}, Device::cuda);
  EXPECT_EQ(to_host(none.view()).shape(), (Shape{0, 5}));
  try {
    const Tensor huge(DType::u8, {cuda_device_info(0).total_bytes + 1}, Device::cuda);
    FAIL() << "more memory than the device has";
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("train.batch_size"), std::string::npos) << e.what();
  }
  const Tensor after_the_error(DType::f32, {3}, Device::cuda);  // which is forgotten
}

TEST_F(CudaCore, CopyGoesBetweenAnyTwoDevices) {
  Stream stream(Device::cuda);
  const Tensor host = counted(1000, 5);
  Tensor first(DType::i32, {1000}, Device::cuda), second(DType::i32, {1000}, Device::cuda);
  Tensor pageable(DType::i32, {1000}), pinned = Tensor::pinned(DType::i32, {1000});
  EXPECT_EQ(pinned.view().device, Device::cpu);
  copy(stream, host.view(), first.view());
  copy(stream, first.view(), second.view());
  copy(stream, second.view(), pageable.view());  // waits by itself
  EXPECT_EQ(values(pageable.view()), numbers(1000, 5));
  copy(stream, second.view(), pinned.view());
  stream.synchronize();
  EXPECT_EQ(values(pinned.view()), numbers(1000, 5));
  copy(stream, second.view().rows(10, 20), pageable.view().rows(0, 10));
  EXPECT_EQ(values(pageable.view().rows(0, 10)), numbers(10, 15));
  fill_zero(stream, second.view().rows(1, 1000));
  stream.synchronize();
  EXPECT_EQ(values(second.view().rows(0, 3)), (std::vector<std::int32_t>{5, 0, 0}));
  copy(stream, first.view().rows(0, 0), second.view().rows(0, 0));
  EXPECT_THROW(copy(stream, first.view(), second.view().rows(0, 9)), ShapeError);
  EXPECT_THROW(copy(stream, first.view(), Tensor(DType::f32, {1000}, Device::cuda).view()), DTypeError);
}

TEST_F(CudaCore, CopyConvertConvertsOnAnyDevice) {
  const Tensor host = random_tensor(DType::f32, {7, 9}, 1);
  const Tensor rounded = converted(host.view(), DType::bf16);
  const Tensor device = to_device(host.view());
  Tensor narrow(DType::bf16, {7, 9}, Device::cuda), wide(DType::f64, {7, 9}, Device::cuda),
      back(DType::bf16, {7, 9});
  copy_convert(device.view(), narrow.view());
  copy_convert(narrow.view(), wide.view());
  copy_convert(wide.view(), back.view());
  EXPECT_TRUE(same_bits(back.view(), rounded.view()));
  EXPECT_TRUE(same_bits(to_host(narrow.view()).view(), rounded.view()));
}

// What is queued first works first, though the host changes its memory at once; two streams meet at an event.
TEST_F(CudaCore, EventsOrderStreams) {
  constexpr std::int64_t kNum = 4096;
  Stream one(Device::cuda), two(Device::cuda);
  Tensor source(DType::i32, {kNum}, Device::cuda), target(DType::i32, {kNum}, Device::cuda);
  Tensor early = Tensor::pinned(DType::i32, {kNum}), late = Tensor::pinned(DType::i32, {kNum});
  Tensor host = Tensor::pinned(DType::i32, {kNum});
  copy_convert(counted(kNum, 1).view(), host.view());
  copy(one, host.view(), source.view());
  std::memset(host.view().data, 0, static_cast<std::size_t>(host.size_bytes()));
  const Event written = one.record();
  two.wait(written);
  copy(two, source.view(), target.view());
  const Event read = two.record();
  one.wait(read);
  fill_zero(one, source.view());  // must not overtake the copy on the other stream
  copy(two, target.view(), early.view());
  two.wait(one.record());
  copy(two, source.view(), late.view());
  two.synchronize();
  EXPECT_EQ(values(early.view()), numbers(kNum, 1));
  EXPECT_EQ(values(late.view()), std::vector<std::int32_t>(kNum, 0));
  two.wait(Event());  // one never recorded has happened
  two.synchronize();
}

TEST_F(CudaCore, AnEventOutlivesItsStream) {
  Stream two(Device::cuda);
  Tensor target(DType::i32, {8}, Device::cuda);
  Event event;
  {
    Stream one(Device::cuda);
    copy(one, counted(8, 3).view(), target.view());
    event = one.record();
    Stream moved(std::move(one));
    event = moved.record();
  }
  two.wait(event);
  Tensor result = Tensor::pinned(DType::i32, {8});
  copy(two, target.view(), result.view());
  two.synchronize();
  EXPECT_EQ(values(result.view()), numbers(8, 3));
}

// Pieces of the ring are given out again only when the device has read them; what is larger gets memory of
// its own.
TEST_F(CudaCore, StagedBytesAreSafeWhenTheRingRunsOver) {
  Stream stream(Device::cuda);
  constexpr std::int64_t kNum = 200'000;  // 0.8 MB: seven of them run round a ring of 4 MiB
  std::vector<Tensor> targets;            // made first: making one waits for the device
  for (int i = 0; i < 7; ++i) targets.emplace_back(DType::i32, Shape{kNum}, Device::cuda);
  for (int i = 0; i < 3; ++i) targets.emplace_back(DType::i32, Shape{2'000'000}, Device::cuda);
  Tensor host(DType::i32, {kNum});
  for (std::int32_t i = 0; i < 7; ++i) {
    std::iota(host.view().as<std::int32_t>(), host.view().as<std::int32_t>() + kNum, i);
    copy(stream, host.view(), targets[static_cast<std::size_t>(i)].view());
  }
  const std::int64_t ring_bytes = stream.scratch_bytes();
  for (std::int32_t i = 0; i < 3; ++i)
    copy(stream, counted(2'000'000, 100 + i).view(), targets[static_cast<std::size_t>(7 + i)].view());
  EXPECT_EQ(stream.scratch_bytes(), ring_bytes);
  stream.synchronize();
  for (std::int32_t i = 0; i < 7; ++i)
    EXPECT_EQ(values(targets[static_cast<std::size_t>(i)].view()), numbers(kNum, i)) << i;
  for (std::int32_t i = 0; i < 3; ++i)
    EXPECT_EQ(values(targets[static_cast<std::size_t>(7 + i)].view()), numbers(2'000'000, 100 + i)) << i;
}

TEST_F(CudaCore, StagedPiecesAreAlignedAndHoldTheBytes) {
  Stream stream(Device::cuda);
  const char text[] = "seven b";
  const void* first = stream.stage(text, 7);
  const void* second = stream.stage(text, 7);
  EXPECT_NE(first, second);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(second) % 64, 0u);
  EXPECT_EQ(std::memcmp(first, text, 7), 0);
  EXPECT_EQ(std::memcmp(second, text, 7), 0);
}

TEST_F(CudaCore, ScratchGrowsAndStays) {
  Stream stream(Device::cuda);
  EXPECT_EQ(stream.scratch_bytes(), 0);
  void* small = stream.scratch(1000);
  EXPECT_EQ(stream.scratch(500), small);
  EXPECT_EQ(stream.scratch_bytes(), 1000);
  const TensorView in_use{small, DType::i32, Device::cuda, {250}};
  Tensor result(DType::i32, {250}, Device::cuda);
  copy(stream, counted(250, 1).view(), in_use);
  copy(stream, in_use, result.view());
  stream.scratch(100'000);  // what is queued on the old memory still runs
  EXPECT_GE(stream.scratch_bytes(), 100'000);
  stream.synchronize();
  EXPECT_EQ(values(result.view()), numbers(250, 1));
}

struct Plans {
  explicit Plans(Stream& stream) : device(stream.device()) {}
  Device device;
  int uses = 0;
};
struct OtherPlans : Plans {
  using Plans::Plans;
};
TEST_F(CudaCore, EachStreamKeepsOneStateOfATypeAndTakesItAlong) {
  Stream one(Device::cuda), two(Device::cuda);
  EXPECT_EQ(++one.state<Plans>().uses, 1);
  EXPECT_EQ(++one.state<Plans>().uses, 2);
  EXPECT_EQ(one.state<OtherPlans>().uses, 0);
  EXPECT_EQ(two.state<Plans>().uses, 0);
  EXPECT_EQ(one.state<Plans>().device, Device::cuda);
  Stream moved(std::move(one));
  EXPECT_EQ(moved.state<Plans>().uses, 2);
}

TEST_F(CudaCore, ArenaGivesOutDeviceMemoryAgain) {
  Arena arena(4096, true, Device::cuda);
  const TensorView a = arena.tensor(DType::f32, {3});
  EXPECT_EQ(a.device, Device::cuda);
  EXPECT_TRUE(std::isnan(to_host(a).view().as<float>()[2]));
  const Arena::Mark mark = arena.mark();
  const TensorView big = arena.tensor(DType::f64, {1000});  // larger than a slab
  const TensorView c = arena.tensor(DType::i32, {3});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(c.data) % 256, 0u);
  EXPECT_EQ(values(c), (std::vector<std::int32_t>{-1, -1, -1}));
  copy_convert(counted(3, 1).view(), c);
  const std::int64_t reserved = arena.reserved_bytes();
  arena.release(mark);
  EXPECT_EQ(arena.tensor(DType::f64, {1000}).data, big.data);
  const TensorView again = arena.tensor(DType::i32, {3});
  EXPECT_EQ(again.data, c.data);
  EXPECT_EQ(values(again), (std::vector<std::int32_t>{-1, -1, -1}));  // poisoned again
  EXPECT_EQ(arena.reserved_bytes(), reserved);
}

std::vector<ParamSpec> specs() {
  return {{"w", {3, 5}, Init::normal(0.5), true, false}, {"g", {7}, Init::ones(), false, false}};
}

TEST_F(CudaCore, ParamStoreHoldsTheSameOnTheDevice) {
  const Uuid uuid = Uuid::from_seed(1, 0);
  ParamStore host(DType::bf16), device(DType::bf16, Device::cuda);
  for (ParamStore* store : {&host, &device}) {
    for (const BlockKind kind : {BlockKind::trunk, BlockKind::expert, BlockKind::router})
      store->initialise(store->add_block(kind, kind == BlockKind::trunk ? Uuid{} : uuid, specs(), true), 5);
  }
  EXPECT_EQ(device.size_bytes(), host.size_bytes());
  for (std::size_t i = 0; i < 3; ++i) {
    const Block &h = host.blocks()[i], &d = device.blocks()[i];
    for (const TensorView slot : {d.value(), d.master(), d.grad(), d.exp_avg(), d.exp_avg_sq()})
      EXPECT_EQ(slot.device, Device::cuda);
    EXPECT_TRUE(same_bits(to_host(d.value()).view(), h.value()));
    EXPECT_TRUE(same_bits(to_host(d.master()).view(), h.master()));
    EXPECT_EQ(max_abs(to_host(d.grad()).view()), 0.0);
  }
}

TEST_F(CudaCore, ParamStoreBlocksComeGoFreezeAndMove) {
  Stream stream(Device::cuda);
  const Uuid uuid = Uuid::from_seed(1, 0);
  ParamStore store(DType::f32, Device::cuda);
  const BlockId trunk = store.add_block(BlockKind::trunk, {}, specs(), true);
  store.initialise(trunk, 5);
  const Tensor weights = to_host(store.block(trunk).value());
  const std::int64_t bytes = store.size_bytes();
  const BlockId expert = store.add_block(BlockKind::expert, uuid, specs(), true);
  store.remove_block(expert);
  EXPECT_EQ(store.size_bytes(), bytes);
  EXPECT_EQ(store.find_block(BlockKind::expert, uuid), nullptr);
  EXPECT_THROW(store.remove_block(expert), InternalError);

  copy_convert(random_tensor(DType::f32, {store.block(trunk).numel}, 3).view(), store.block(trunk).grad());
  store.zero_grads(stream);
  stream.synchronize();
  EXPECT_EQ(max_abs(to_host(store.block(trunk).grad()).view()), 0.0);
  store.set_trainable(trunk, false);
  EXPECT_TRUE(store.block(trunk).grad().empty());
  EXPECT_TRUE(store.block(trunk).exp_avg().empty());
  store.set_trainable(trunk, true);
  EXPECT_EQ(max_abs(to_host(store.block(trunk).exp_avg_sq()).view()), 0.0);
  EXPECT_TRUE(same_bits(to_host(store.block(trunk).value()).view(), weights.view()));

  for (const Device device : {Device::cpu, Device::cuda}) {
    store.move_to(device);
    EXPECT_EQ(store.block(trunk).value().device, device);
    EXPECT_EQ(store.block(trunk).exp_avg().device, device);
    EXPECT_TRUE(same_bits(to_host(store.block(trunk).value()).view(), weights.view()));
  }
}

TEST(CudaCoreAnywhere, WithoutADeviceStreamsSayWhatToDo) {
  if (cuda_devices().num > 0) GTEST_SKIP() << "this process has a device";
  EXPECT_FALSE(cuda_devices().why_none.empty());
  try {
    Stream stream(Device::cuda);
    FAIL() << "a stream on a device that is not there";
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("--device cpu"), std::string::npos) << e.what();
  }
  EXPECT_FALSE(Tensor::pinned(DType::f32, {4}).empty());  // plain host memory
}

}  // namespace
}  // namespace moecollab::test
