#include "app/device.hpp"

#include <fmt/format.h>

#include "moecollab/core/device.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::app {

ChosenDevice choose_device(const Job& job) {
  using config::DeviceChoice;
  const DeviceChoice choice = job.settings.device;
  if (choice == DeviceChoice::cpu || (choice == DeviceChoice::automatic && !built_with_cuda()))
    return {Device::cpu, "cpu"};
  const bool wide = job.settings.model.dtype == DType::f64 && job.settings.is_given("model.dtype");
  if (choice == DeviceChoice::automatic && wide) return {Device::cpu, "cpu (f64 is computed there only)"};
  try {
    job.world.use_local_cuda_device();
  } catch (const UsageError&) {  // thrown on every rank alike
    if (choice == DeviceChoice::cuda) throw;
    const std::string why = cuda_devices().why_none;
    return {Device::cpu,
            fmt::format("cpu ({})", why.empty() ? "not every rank can have a CUDA device of its own" : why)};
  }
  return {Device::cuda, fmt::format("cuda ({})", current_cuda_device().name)};
}

void move_model(Model& model, Device device) {
  if (device == Device::cuda && model.config.dtype == DType::f64)
    throw UsageError(
        "--device cuda: the model's type is f64, which is computed on the CPU only; use --device cpu, or "
        "model.dtype = f32 or bf16");
  model.params.move_to(device);
}

}  // namespace moecollab::app
