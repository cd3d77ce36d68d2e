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

ChosenDevice device_for(const Job& job, const ChosenDevice& chosen, const Model& model) {
  if (chosen.device == Device::cpu) return chosen;
  const std::string why = config::why_not_on_cuda(model.config, model.slots.size());
  if (why.empty()) return chosen;
  if (job.settings.device == config::DeviceChoice::automatic)
    return {Device::cpu, fmt::format("cpu ({})", why)};
  throw UsageError(fmt::format("--device cuda: {}; use --device cpu", why));
}

}  // namespace moecollab::app
