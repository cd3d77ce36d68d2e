// Where the model of this job works.
#pragma once

#include <string>

#include "app/commands.hpp"
#include "app/model_files.hpp"

namespace moecollab::app {

inline constexpr std::int64_t kArenaSlabBytes = std::int64_t{16} << 20;

struct ChosenDevice {
  Device device = Device::cpu;
  std::string text;  // for people: "cuda (NVIDIA H100)", "cpu (there is no NVIDIA driver)"
};

// What --device asks for, the same on every rank; each rank of a host gets a CUDA device of its own. `auto`
// takes CUDA when every rank has one. Collective. Throws UsageError when cuda was asked for and cannot be
// had.
ChosenDevice choose_device(const Job& job);

// The same for a model that was read: what CUDA cannot compute (f64, more experts or picks than its kernels
// take) goes to the CPU with `auto`, and is a UsageError with `cuda`.
ChosenDevice device_for(const Job& job, const ChosenDevice& chosen, const Model& model);

}  // namespace moecollab::app
