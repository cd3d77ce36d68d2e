// ops_benchmark [--json FILE] [--threads N]
// Measures the limits of the machine and, in the same run, every operation against them.

#include <omp.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "harness.hpp"

namespace {

using namespace moecollab;

struct Options {
  const char* json = nullptr;
  int threads = omp_get_max_threads();
};

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) return false;
    if (std::strcmp(argv[i], "--json") == 0)
      options.json = argv[i + 1];
    else if (std::strcmp(argv[i], "--threads") == 0)
      options.threads = std::atoi(argv[i + 1]);
    else
      return false;
  }
  return options.threads >= 1;
}

void print_row(const bench::Row& row, const bench::Limits& limits) {
  std::printf("%-31s %-4s %-32s %9.3f ms", row.op.c_str(), to_string(row.dtype), row.shape.c_str(), row.ms);
  if (row.gflop > 0)
    std::printf(" %8.0f GFLOP/s", row.gflop_per_s());
  else
    std::printf(" %8.1f GB/s   ", row.gb_per_s());
  std::printf(" %4.0f %%\n", 100 * bench::share_of_limit(row, limits));
}

bool write_json(const char* path, int threads, const bench::Limits& limits, const bench::Rows& rows) {
  std::FILE* file = std::fopen(path, "w");
  if (file == nullptr) return false;
  std::fprintf(
      file,
      "{\"threads\": %d, \"f32_gflop_per_s\": %.1f, \"bf16_gflop_per_s\": %.1f, \"copy_gb_per_s\": %.2f,\n"
      " \"rows\": [",
      threads, limits.f32_gflop_per_s, limits.bf16_gflop_per_s, limits.copy_gb_per_s);
  const char* separator = "\n";
  for (const auto& row : rows) {
    std::fprintf(
        file,
        "%s  {\"op\": \"%s\", \"dtype\": \"%s\", \"shape\": \"%s\", \"ms\": %.4f, \"gflop_per_s\": %.1f, "
        "\"gb_per_s\": %.2f, \"share_of_limit\": %.3f}",
        separator, row.op.c_str(), to_string(row.dtype), row.shape.c_str(), row.ms, row.gflop_per_s(),
        row.gb_per_s(), bench::share_of_limit(row, limits));
    separator = ",\n";
  }
  std::fprintf(file, "\n ]}\n");
  return std::fclose(file) == 0;
}

int run(const Options& options) {
  omp_set_num_threads(options.threads);
  Stream stream;
  const bench::Limits limits = bench::measure_limits(stream);
  std::printf("%d threads; limits: f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s, copy %.1f GB/s\n", options.threads,
              limits.f32_gflop_per_s, limits.bf16_gflop_per_s, limits.copy_gb_per_s);
  bench::Rows rows;
  std::size_t printed = 0;
  const auto print_new = [&] {
    for (; printed < rows.size(); ++printed) print_row(rows[printed], limits);
    std::fflush(stdout);
  };
  for (const DType dtype : {DType::f32, DType::bf16}) {
    bench::dense_cases(stream, dtype, rows);
    print_new();
    bench::moe_cases(stream, dtype, rows);
    print_new();
  }
  if (options.json != nullptr && !write_json(options.json, options.threads, limits, rows)) {
    std::fprintf(stderr, "ops_benchmark: cannot write %s\n", options.json);
    return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr, "usage: ops_benchmark [--json FILE] [--threads N]\n");
    return 64;
  }
  try {
    return run(options);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "ops_benchmark: %s\n", e.what());
    return 70;
  }
}
