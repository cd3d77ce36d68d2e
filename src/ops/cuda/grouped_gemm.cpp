#include "ops/cuda/grouped_gemm.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "moecollab/core/cuda_check.cuh"

namespace moecollab::ops::cuda {

namespace {

// Large tiles do half of the small ones' loads per product, but it takes two of them on each of some hundred
// multiprocessors to keep a device busy, and rows that fill them.
constexpr std::int64_t kEnoughTiles = 200;
constexpr double kSmallTileCost = 1.4;  // of a product, in products of a large tile

constexpr std::int64_t kPartBytes = 256;  // parts of the table begin at multiples

std::int64_t parts(std::int64_t extent, std::int64_t size) { return (extent + size - 1) / size; }

template <class T>
bool gated(GemmPass pass, const GemmProblem<T>& p) {
  return pass == GemmPass::hidden_forward && p.b2 != nullptr;
}

// The rows of every operand and result begin at multiples of 16 bytes.
template <class T>
bool rows_aligned(GemmPass pass, const GemmProblem<T>& p) {
  constexpr std::int64_t kPiece = 16 / sizeof(T);
  const bool weights = pass == GemmPass::weight_gradient;
  if (p.n % kPiece != 0 || (weights ? p.m : p.k) % kPiece != 0) return false;
  for (const void* q :
       {static_cast<const void*>(p.a), static_cast<const void*>(p.b), static_cast<const void*>(p.a2),
        static_cast<const void*>(p.b2), static_cast<const void*>(p.out), static_cast<const void*>(p.gate),
        static_cast<const void*>(p.up), static_cast<const void*>(p.skip), static_cast<const void*>(p.sum)})
    if (reinterpret_cast<std::uintptr_t>(q) % 16 != 0) return false;
  return true;
}

// Tiles of one problem. With two right-hand matrices a tile holds half of its columns of each.
template <class T>
void set_tiles(GemmPass pass, GemmTile tile, GemmProblem<T>& p) {
  const std::int64_t size = gemm_tile_size(tile);
  p.tiles_m = static_cast<std::int32_t>(parts(p.m, size));
  p.tiles_n = static_cast<std::int32_t>(parts(p.n, gated(pass, p) ? size / 2 : size));
}

template <class T>
std::int64_t num_tiles(GemmPass pass, GemmTile tile, std::vector<GemmProblem<T>>& problems) {
  std::int64_t sum = 0;
  for (GemmProblem<T>& p : problems) {
    set_tiles(pass, tile, p);
    sum += static_cast<std::int64_t>(p.tiles_m) * p.tiles_n;
  }
  return sum;
}

template <class T>
GemmTile tile_by_shape(GemmPass pass, std::vector<GemmProblem<T>>& problems) {
  const auto large = static_cast<double>(num_tiles(pass, GemmTile::large, problems));
  const auto small = static_cast<double>(num_tiles(pass, GemmTile::small, problems));
  return large >= kEnoughTiles && 4.0 * large <= kSmallTileCost * small ? GemmTile::large : GemmTile::small;
}

}  // namespace

template <class T>
void GemmPlan<T>::add(GemmPass pass, const std::vector<GemmProblem<T>>& problems) {
  std::vector<GemmProblem<T>> aligned, other;
  for (const GemmProblem<T>& p : problems) (rows_aligned(pass, p) ? aligned : other).push_back(p);
  if (!aligned.empty())
    add_launch(pass, tile_ == GemmTile::by_shape ? tile_by_shape(pass, aligned) : tile_, std::move(aligned));
  if (!other.empty()) add_launch(pass, GemmTile::any_row, std::move(other));
}

// The longest sums first, so that none begins when the others have ended.
template <class T>
void GemmPlan<T>::add_launch(GemmPass pass, GemmTile tile, std::vector<GemmProblem<T>> problems) {
  std::stable_sort(problems.begin(), problems.end(),
                   [](const GemmProblem<T>& p, const GemmProblem<T>& q) { return p.k > q.k; });
  Step step;
  step.launch.pass = pass;
  step.launch.tile = tile;
  step.launch.num_tiles = num_tiles(pass, tile, problems);
  if (step.launch.num_tiles == 0) return;
  step.launch.num_problems = static_cast<std::int32_t>(problems.size());
  std::int32_t first = 0;
  for (const GemmProblem<T>& p : problems) {
    step.first_tile.push_back(first);
    first += p.tiles_m * p.tiles_n;
  }
  step.problems = std::move(problems);
  steps_.push_back(std::move(step));
}

template <class T>
void GemmPlan<T>::run(Stream& stream) {
  std::vector<std::byte> table;
  std::vector<std::size_t> at;  // of the problems and the first tiles of each step
  const auto append = [&](const auto& list) {
    at.push_back(table.size());
    const std::size_t bytes = list.size() * sizeof(list[0]);
    table.resize(static_cast<std::size_t>(parts(static_cast<std::int64_t>(table.size() + bytes), kPartBytes) *
                                          kPartBytes));
    std::memcpy(table.data() + at.back(), list.data(), bytes);
  };
  for (const Step& step : steps_) {
    append(step.problems);
    append(step.first_tile);
  }
  if (table.empty()) return;
  const auto bytes = static_cast<std::int64_t>(table.size());
  auto* device = static_cast<std::byte*>(stream.scratch(bytes));
  check_cuda(cudaMemcpyAsync(device, stream.stage(table.data(), bytes), table.size(), cudaMemcpyHostToDevice,
                             cuda_stream(stream)),
             "cudaMemcpyAsync");
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    GemmLaunch<T> launch = steps_[i].launch;
    launch.problems = reinterpret_cast<const GemmProblem<T>*>(device + at[2 * i]);
    launch.first_tile = reinterpret_cast<const std::int32_t*>(device + at[2 * i + 1]);
    launch_gemm(stream, launch);
  }
}

template class GemmPlan<float>;
template class GemmPlan<BFloat16>;

}  // namespace moecollab::ops::cuda
