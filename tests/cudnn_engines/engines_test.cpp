// Asks the real cuDNN, without a device, which engines take the graphs of attention on devices that JSON
// files describe. A libcuda.so.1 must load: the toolkit's stub does. Plans are built up to the point where
// their code would be loaded into the device; the stub's refusal of that counts as built.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "ops/cuda/attention_graph.hpp"

namespace moecollab::ops::cuda {
namespace {

Descriptor device_of(const std::string& name) {
  std::ifstream file(std::string(MC_DEVICE_DESCRIPTIONS) + "/" + name + ".json");
  const std::vector<char> json{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  EXPECT_FALSE(json.empty()) << name;
  Descriptor device(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  device.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, json);
  return device.finalize("device description");
}

// There is a configuration whose plan can be built and which does not say that its bits differ from run to
// run: what build_plan() looks for. `report` names all configurations.
bool usable(const Descriptor& graph, const Descriptor& device, std::string& report) {
  bool found = false;
  for (const Descriptor& configuration : engine_configurations(graph, &device)) {
    const std::vector<Descriptor> engine =
        configuration.get_all(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    report += " engine " + std::to_string(engine.at(0).get_int(CUDNN_ATTR_ENGINE_GLOBAL_INDEX)) + " (notes";
    bool repeats = true;
    for (const cudnnBackendNumericalNote_t note : engine.at(0).numerical_notes()) {
      report += ' ' + std::to_string(note);
      if (note == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) repeats = false;
    }
    report +=
        ", workspace " + std::to_string(configuration.get_int(CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE)) + ")";
    if (found || !repeats) continue;
    Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, device);
    found = plan.try_finalize() == CUDNN_STATUS_SUCCESS;
    if (!found) {
      std::array<char, 1024> why{};
      cudnnGetLastErrorString(why.data(), why.size());
      found = std::string(why.data()).find("cuLibraryLoadData") != std::string::npos;
      if (!found) report += std::string(" not built: ") + why.data();
    }
  }
  return found;
}

GraphShape shape(std::int64_t batch, std::int64_t heads, std::int64_t kv_heads, std::int64_t sequence,
                 std::int64_t width, bool causal) {
  return {batch, heads, kv_heads, sequence, width, heads, kv_heads, causal};
}

struct Case {
  const char* name;
  GraphShape shape;
  bool engines;  // there are some
};
const Case kCases[] = {
    {"causal 2x8x512x64", shape(2, 8, 8, 512, 64, true), true},
    {"causal 8 heads on 2, 2048x128", shape(2, 8, 2, 2048, 128, true), true},
    {"both ways 512x64", shape(2, 8, 8, 512, 64, false), true},
    {"causal 333x64", shape(1, 4, 4, 333, 64, true), true},
    {"causal 4 heads on 2, 128x16", shape(1, 4, 2, 128, 16, true), true},
    {"both ways 5x8", shape(3, 2, 1, 5, 8, false), true},
    {"two of eight heads at a time", {1, 2, 2, 512, 64, 8, 8, true}, true},
    {"one group of 8 heads on 2", {1, 4, 1, 512, 64, 8, 2, true}, true},
    {"width 6", shape(1, 2, 2, 64, 6, true), false},
    {"width 300", shape(1, 2, 2, 64, 300, true), false},
};

class CudnnEngines : public testing::TestWithParam<const char*> {};

TEST_P(CudnnEngines, TakeTheAttentionGraphs) {
  const Descriptor device = device_of(GetParam());
  for (const Case& c : kCases)
    for (const bool backward : {false, true}) {
      std::string report = std::string(c.name) + (backward ? ", backward:" : ", forward:");
      Graph graph = backward ? backward_graph(c.shape) : forward_graph(c.shape);
      EXPECT_EQ(usable(graph.finish(nullptr), device, report), c.engines) << report;
      std::printf("%s\n", report.c_str());
    }
}
INSTANTIATE_TEST_SUITE_P(Devices, CudnnEngines, testing::Values("a100", "h100", "b200"),
                         [](const auto& device) { return std::string(device.param); });

}  // namespace
}  // namespace moecollab::ops::cuda
