// What the tests of the dense operations on the device share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "cuda/device_support.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::test {

inline constexpr double kEpsF32 = 0x1p-23;
inline constexpr DType kDeviceTypes[] = {DType::f32, DType::bf16};

// The most that storing a value in the type changes it by, relative (bf16: half the distance at 1).
inline double rounding_of(DType dtype) { return dtype == DType::bf16 ? 0x1p-8 : 0x1p-24; }

inline Tensor int_tensor(const std::vector<std::int32_t>& values) {
  Tensor t(DType::i32, {static_cast<std::int64_t>(values.size())});
  std::copy(values.begin(), values.end(), t.view().as<std::int32_t>());
  return t;
}

// What an output holds before it is overwritten.
inline Tensor poisoned(DType dtype, const Shape& shape) {
  Tensor t(DType::f64, shape);
  std::fill_n(t.view().as<double>(), shape.numel(), std::numeric_limits<double>::quiet_NaN());
  return converted(t.view(), dtype);
}

// A copy on the device, at a multiple of 256 bytes or, `shifted`, one element further, between two elements
// that no operation may touch.
class Placed {
 public:
  Placed(ConstTensorView host, bool shifted) : before_(shifted ? 1 : 0) {
    const std::int64_t size = moecollab::size_bytes(host.dtype);
    const std::int64_t bytes = host.size_bytes() + (before_ + 1) * size;
    const Tensor padded(DType::u8, {bytes});  // zeros
    auto* const p = padded.view().as<std::uint8_t>();
    std::copy_n(static_cast<const std::uint8_t*>(host.data), host.size_bytes(), p + before_ * size);
    memory_ = to_device(padded.view());
    view_ = {static_cast<char*>(memory_.view().data) + before_ * size, host.dtype, Device::cuda, host.shape};
  }
  TensorView view() const { return view_; }
  Tensor result() const { return to_host(view_); }
  // The elements around it are still zeros.
  bool margins_untouched() const {
    const Tensor all = to_host(memory_.view());
    const auto* const p = all.view().as<std::uint8_t>();
    const std::int64_t size = moecollab::size_bytes(view_.dtype), begin = before_ * size;
    const auto is_zero = [](std::uint8_t byte) { return byte == 0; };
    return std::all_of(p, p + begin, is_zero) &&
           std::all_of(p + begin + view_.size_bytes(), p + all.size_bytes(), is_zero);
  }

 private:
  std::int64_t before_;
  Tensor memory_;
  TensorView view_;
};

// Runs `run(shifted)`, which gives the host's copy of the results, twice with aligned pointers and once with
// shifted ones: the same bits each time. Returns the results.
template <class Run>
std::vector<Tensor> same_results(const Run& run) {
  std::vector<Tensor> results = run(false);
  for (const bool shifted : {false, true}) {
    const std::vector<Tensor> again = run(shifted);
    for (std::size_t i = 0; i < results.size(); ++i)
      EXPECT_TRUE(same_bits(results[i].view(), again[i].view()))
          << "result " << i << (shifted ? " with shifted pointers" : " of a second run");
  }
  return results;
}

// The results of those, which must have kept to their memory.
template <class... P>
std::vector<Tensor> results_of(const P&... placed) {
  device_stream().synchronize();
  std::vector<Tensor> results;
  (results.push_back(placed.result()), ...);
  EXPECT_TRUE((placed.margins_untouched() && ...)) << "an element beside a result was written";
  return results;
}

}  // namespace moecollab::test
