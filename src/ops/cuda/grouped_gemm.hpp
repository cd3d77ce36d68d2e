// Grouped matrix products on the device: problems of any sizes in one launch. What the experts' passes have
// in common; experts.cpp says which problems, grouped_gemm_bf16.cu and grouped_gemm_f32.cu multiply.
#pragma once

#include <cstdint>
#include <vector>

#include "moecollab/core/stream.hpp"

namespace moecollab::ops::cuda {

// What one launch makes of each of its problems, C [m,n] a sum over k. Matrices are row-major and packed: the
// extents say how rows lie apart, and every result has rows of n.
enum class GemmPass : std::uint8_t {
  hidden_forward,   // a [m,k] = x, b [n,k] = Wg, b2 = Wu: gate, up and hidden [m,n]; one matrix: b, no b2
  output_forward,   // a [m,k] = hidden, b [n,k] = Wd: out = skip + C
  hidden_backward,  // a [m,k] = dy, b [k,n] = Wd: gate and up become their gradients, out is hidden again
  input_backward,  // a [m,k] = d_gate, b [k,n] = Wg, and a2 = d_up, b2 = Wu: out = skip + C; or a and b alone
  weight_gradient,  // a [k,m], b [k,n]: sum += C
};

template <class T>
struct GemmProblem {
  const T *a = nullptr, *b = nullptr;
  const T *a2 = nullptr, *b2 = nullptr;
  std::int32_t m = 0, n = 0, k = 0;
  std::int32_t tiles_m = 0, tiles_n = 0;  // set by the plan
  T *out = nullptr, *gate = nullptr, *up = nullptr;
  const T* skip = nullptr;
  float* sum = nullptr;
};

// Which tile of C a block makes. It decides the speed, never a bit: an element's products are added in
// ascending k by the same instructions in all of them.
enum class GemmTile : std::uint8_t {
  by_shape,
  large,   // 128 x 128, for operands of which every row begins at a multiple of 16 bytes
  small,   // 64 x 64, for the same operands when there are few rows
  any_row  // 64 x 64, for rows that begin anywhere
};
constexpr int gemm_tile_size(GemmTile tile) { return tile == GemmTile::large ? 128 : 64; }

// One launch as the kernels see it. `first_tile` holds, per problem, the number of tiles of those before it.
template <class T>
struct GemmLaunch {
  GemmPass pass = GemmPass::output_forward;
  GemmTile tile = GemmTile::small;
  std::int64_t num_tiles = 0;
  std::int32_t num_problems = 0;
  const GemmProblem<T>* problems = nullptr;  // device memory
  const std::int32_t* first_tile = nullptr;  // device memory
};
void launch_gemm(Stream& stream, const GemmLaunch<float>& launch);
void launch_gemm(Stream& stream, const GemmLaunch<BFloat16>& launch);

// The launches of one call, described on the host and sent in one copy.
template <class T>
class GemmPlan {
 public:
  // Where rows allow it, `tile` is used whatever the shapes.
  explicit GemmPlan(GemmTile tile = GemmTile::by_shape) : tile_(tile) {}

  // Adds a pass: one launch, or two when the rows of some problems begin anywhere. Passes run in the order in
  // which they were added.
  void add(GemmPass pass, const std::vector<GemmProblem<T>>& problems);
  // Takes the stream's scratch.
  void run(Stream& stream);

 private:
  struct Step {
    GemmLaunch<T> launch;
    std::vector<GemmProblem<T>> problems;
    std::vector<std::int32_t> first_tile;
  };
  void add_launch(GemmPass pass, GemmTile tile, std::vector<GemmProblem<T>> problems);

  GemmTile tile_;
  std::vector<Step> steps_;
};

}  // namespace moecollab::ops::cuda
