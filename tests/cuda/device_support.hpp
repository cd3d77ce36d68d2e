// What the tests of CUDA code share. They run on a GPU or, without one, on the emulated device of
// tests/support/cudasim.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

#include "moecollab/core/device.hpp"
#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"
#include "support/gradient_check.hpp"

namespace moecollab::test {

class OnDevice : public testing::Test {  // skips, and says why, where there is no device
 protected:
  void SetUp() override {
    if (const CudaDevices devices = cuda_devices(); devices.num == 0) GTEST_SKIP() << devices.why_none;
  }
};
template <class Case>
class OnDeviceWith : public OnDevice, public testing::WithParamInterface<Case> {};

// One for all tests of the program, and never destroyed: the runtime may end before static storage does.
inline Stream& device_stream() {
  static auto* stream = new Stream(Device::cuda);
  return *stream;
}

// Both wait for all work of the device, also on device_stream().
inline Tensor to_device(ConstTensorView host) {
  Tensor device(host.dtype, host.shape, Device::cuda);
  copy_convert(host, device.view());
  return device;
}
inline Tensor to_host(ConstTensorView device) {
  Tensor host(device.dtype, device.shape);
  copy_convert(device, host.view());
  return host;
}

// Whether |result - expected| <= absolute + relative |expected| in every element; a NaN on either side is an
// error. Float types, which may differ; memory of any device.
inline testing::AssertionResult close_to(ConstTensorView result, ConstTensorView expected, double absolute,
                                         double relative = 0) {
  if (result.shape != expected.shape)
    return testing::AssertionFailure()
           << "shape " << to_string(result.shape) << ", expected " << to_string(expected.shape);
  Tensor have(DType::f64, result.shape), want(DType::f64, expected.shape);
  copy_convert(result, have.view());
  copy_convert(expected, want.view());
  const double* h = have.view().as<double>();
  const double* w = want.view().as<double>();
  std::int64_t num_bad = 0, first = 0;
  double worst = 0;  // the largest error, in units of what is allowed
  for (std::int64_t i = 0; i < result.numel(); ++i) {
    const double error = std::abs(h[i] - w[i]), allowed = absolute + relative * std::abs(w[i]);
    if (error <= allowed) continue;
    if (num_bad++ == 0) first = i;
    if (!(error / allowed <= worst)) worst = error / allowed;
  }
  if (num_bad == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << num_bad << " of " << result.numel()
                                     << " elements differ, the first at " << first << ": " << h[first]
                                     << ", expected " << w[first] << "; at worst " << worst
                                     << " times what is allowed";
}

}  // namespace moecollab::test
