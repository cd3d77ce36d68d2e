// gpu_benchmark [--seconds S] [--tiny]
// Kernels of ops against the limits of the device in the same run: copies and dense products. JSON lines on
// standard output; jobs/gpu-check makes a report of them.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "harness.hpp"
#include "moecollab/core/device.hpp"

namespace {

using namespace moecollab;

int run(bool tiny, double seconds) {
  if (const CudaDevices devices = cuda_devices(); devices.num == 0) {
    std::printf("{\"case\": \"all\", \"not_run\": \"no GPU\"}\n");
    std::fprintf(stderr, "gpu_benchmark: nothing measured: %s\n", devices.why_none.c_str());
    return 0;
  }
  use_cuda_device(0);
  bench::Bench bench(tiny, seconds);
  bench::copy_case(bench);
  bench::experts_cases(bench);
  bench::rows_cases(bench);
  bench::layer_cases(bench);
  bench::dense_cases(bench);
  return bench.failed() ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  bool tiny = false;
  double seconds = 3600;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--tiny") == 0) {
      tiny = true;
    } else if (std::strcmp(argv[i], "--seconds") == 0 && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else {
      std::fprintf(stderr, "usage: gpu_benchmark [--seconds S] [--tiny]\n");
      return 64;
    }
  }
  try {
    return run(tiny, seconds);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "gpu_benchmark: %s\n", e.what());
    return 70;
  }
}
