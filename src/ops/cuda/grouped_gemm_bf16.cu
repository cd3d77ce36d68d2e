// Grouped products of bf16 matrices with f32 sums, on tensor cores.
//
// C = A B for every problem of a list, A [m,k] and B [k,n] stored along k or across it. A block of 4 warps
// makes one tile of C, 128 x 128 or 64 x 64, each warp a quarter of it, so that an element of shared memory
// that a warp reads serves 64 (32) products. Depth 32 at a time travels through kStages stages of shared
// memory by cp.async; ldmatrix fetches the operands of one mma.m16n8k16 step while those of the step before
// are multiplied; an operand stored across k is transposed by ldmatrix. In shared memory the 16-byte pieces
// of a row are permuted (xor with bits of the row), so that neither the copies nor ldmatrix meet bank
// conflicts.
//
// Launch: one block of 128 threads per tile, as many as there are tiles (1-D). Blocks end and start at
// different times, so on a multiprocessor that holds two of them one multiplies while the other stores; a
// grid cut to the number of multiprocessors would need that number and gain no more.
//
// Shared memory: 64 KiB (128 x 128) or 32 KiB. Bytes moved per tile of size S: 4 S k, and per element of C 2
// for each tensor that the epilogue reads or writes, 8 for a weight gradient.
//
// Precision: products are exact, sums f32 inside mma, rounded to bf16 once.
//
// Reproducible: an element is the work of one warp, whose mma steps add depth 16 each in ascending k to one
// accumulator, padded with zeros at the end; neither tile size nor grid nor neighbours change that. A weight
// gradient begins with what memory holds, so rows that come in several launches, cut at multiples of 32, give
// the bits of one.
//
// The caller (experts.cpp) has checked extents and alignment. Twin: ops/cpu/experts.cpp with
// ops/cpu/gemm.hpp.
#include <cstddef>

#include "ops/cuda/grouped_gemm.cuh"
#include "ops/cuda/ptx.cuh"

namespace moecollab::ops::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kDepth = 32;  // of k in a stage
constexpr int kStages = 4;
constexpr int kChunk = 8;  // elements in 16 bytes

template <int Size>
constexpr int kStageElements = 2 * Size* kDepth;

// A tile of one operand in shared memory, in the order of global memory: Size rows along k, or kDepth rows
// across it.
template <int Size, bool Across>
struct OperandTile {
  static constexpr int kRowElements = Across ? Size : kDepth;
  static constexpr int kRowChunks = kRowElements / kChunk;
  static constexpr int kRowStep = kThreads / kRowChunks;  // rows between the chunks that a thread copies
  static constexpr int kCopies = Size * kDepth / kChunk / kThreads;

  // What eight rows under one another are xored with, all different within the 128 bytes of the banks.
  static __device__ __forceinline__ int permutation(int row) { return Across ? row & 7 : (row >> 1) & 3; }
};

// A thread's share of copying an operand: kCopies chunks of 16 bytes per stage.
template <int Size, bool Across, bool Aligned>
struct Copier {
  using Tile = OperandTile<Size, Across>;

  const BFloat16* from;    // the first chunk of the next stage
  std::int64_t copy_step;  // elements between the chunks of a stage
  std::int64_t stage_step;
  int rows_left;    // along k: rows of the matrix from that of the first chunk on
  int row_step;     // along k: rows of the matrix between chunks
  int to;           // element of the first chunk in a stage
  int chunk_count;  // across k: elements of the matrix in each of the chunks, if above 0

  static __device__ __forceinline__ int tile_row() {
    return static_cast<int>(threadIdx.x) / Tile::kRowChunks;
  }
  static __device__ __forceinline__ int chunk() { return static_cast<int>(threadIdx.x) % Tile::kRowChunks; }

  // `first` and `extent`: the place of the tile in, and the size of, the side that is not k. `row` and
  // `rows_between` say which rows of the matrix, from `first` on, a thread copies along k.
  __device__ __forceinline__ void begin(const BFloat16* matrix, int first, int extent, int k, int row,
                                        int rows_between) {
    if constexpr (Across) {
      from = matrix + static_cast<std::int64_t>(row) * extent + first + chunk() * kChunk;
      copy_step = static_cast<std::int64_t>(Tile::kRowStep) * extent;
      stage_step = static_cast<std::int64_t>(kDepth) * extent;
      chunk_count = extent - first - chunk() * kChunk;
    } else {
      from = matrix + static_cast<std::int64_t>(first + row) * k + chunk() * kChunk;
      copy_step = static_cast<std::int64_t>(rows_between) * k;
      stage_step = kDepth;
      rows_left = extent - first - row;
      row_step = rows_between;
    }
    to = tile_row() * Tile::kRowElements + (chunk() ^ Tile::permutation(tile_row())) * kChunk;
  }

  // Copies the next stage, in which `depth` of k are left.
  __device__ __forceinline__ void copy(BFloat16* stage, int depth) {
#pragma unroll
    for (int i = 0; i < Tile::kCopies; ++i) {
      const int row_count = Across ? depth - tile_row() - i * Tile::kRowStep : rows_left - i * row_step;
      const int count = row_count > 0 ? (Across ? chunk_count : depth - chunk() * kChunk) : 0;
      const BFloat16* source = from + i * copy_step;
      BFloat16* target = stage + to + i * Tile::kRowStep * Tile::kRowElements;
      if constexpr (Aligned) {
        ptx::cp_async<16>(target, source, count > 0 ? 16 : 0);
      } else {
        unsigned words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const unsigned low = 2 * j < count ? source[2 * j].bits : 0u;
          const unsigned high = 2 * j + 1 < count ? source[2 * j + 1].bits : 0u;
          words[j] = low | high << 16;
        }
        *reinterpret_cast<uint4*>(target) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
    from += stage_step;
  }
};

// Operands of one mma step of a warp: rows (columns) in blocks of 16 (of 8).
template <int Size>
struct Fragments {
  static constexpr int kRowBlocks = Size / 2 / 16, kColumnBlocks = Size / 2 / 8;
  unsigned left[kRowBlocks][4];
  unsigned right[kColumnBlocks][2];
};

template <int Size, bool LeftAcross, bool RightAcross>
__device__ __forceinline__ void load_fragments(const BFloat16* stage, int step, int warp_row, int warp_column,
                                               Fragments<Size>& to) {
  const int lane = static_cast<int>(threadIdx.x) % 32, l8 = lane % 8, bit3 = lane / 8 % 2, bit4 = lane / 16;
  // Lanes 8j to 8j + 7 name the rows of the j-th 8 x 8 matrix. Left: (rows, k) in the order (0, 0), (8, 0),
  // (0, 8), (8, 8); right: (k, columns) in the order (0, 0), (8, 0), (0, 8), (8, 8).
  using Left = OperandTile<Size, LeftAcross>;
#pragma unroll
  for (int i = 0; i < Fragments<Size>::kRowBlocks; ++i) {
    if constexpr (LeftAcross) {
      const int chunk = (warp_row / kChunk + 2 * i + bit3) ^ l8;
      ptx::ldmatrix_x4_trans(to.left[i],
                             stage + (step * 16 + bit4 * 8 + l8) * Left::kRowElements + chunk * kChunk);
    } else {
      const int chunk = (2 * step + bit4) ^ Left::permutation(l8);
      ptx::ldmatrix_x4(to.left[i],
                       stage + (warp_row + i * 16 + bit3 * 8 + l8) * Left::kRowElements + chunk * kChunk);
    }
  }
  using Right = OperandTile<Size, RightAcross>;
  const BFloat16* right = stage + Size * kDepth;
#pragma unroll
  for (int j = 0; j < Fragments<Size>::kColumnBlocks; j += 2) {
    unsigned r[4];
    if constexpr (RightAcross) {
      const int chunk = (warp_column / kChunk + j + bit4) ^ l8;
      ptx::ldmatrix_x4_trans(r, right + (step * 16 + bit3 * 8 + l8) * Right::kRowElements + chunk * kChunk);
    } else {
      const int chunk = (2 * step + bit3) ^ Right::permutation(l8);
      ptx::ldmatrix_x4(r,
                       right + (warp_column + j * 8 + bit4 * 8 + l8) * Right::kRowElements + chunk * kChunk);
    }
    to.right[j][0] = r[0], to.right[j][1] = r[1];
    to.right[j + 1][0] = r[2], to.right[j + 1][1] = r[3];
  }
}

template <int Size>
__device__ __forceinline__ void multiply(
    const Fragments<Size>& f, float (&sums)[Fragments<Size>::kRowBlocks][Fragments<Size>::kColumnBlocks][4]) {
#pragma unroll
  for (int i = 0; i < Fragments<Size>::kRowBlocks; ++i)
#pragma unroll
    for (int j = 0; j < Fragments<Size>::kColumnBlocks; ++j)
      ptx::mma_bf16_16816(sums[i][j], f.left[i], f.right[j], sums[i][j]);
}

// Calls f(sums of two neighbours, row, column) for the pairs that a lane holds.
template <int Size, class F>
__device__ __forceinline__ void for_each_pair(
    float (&sums)[Fragments<Size>::kRowBlocks][Fragments<Size>::kColumnBlocks][4], F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < Fragments<Size>::kRowBlocks; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < Fragments<Size>::kColumnBlocks; ++j)
        f(sums[i][j][2 * half], sums[i][j][2 * half + 1], i * 16 + half * 8 + lane / 4, j * 8 + lane % 4 * 2);
}

// Hands out the sums of a warp in pieces of 8 columns. They pass through the warp's own part of shared memory
// because a lane holds pairs: 16-byte accesses of whole rows cost a quarter of the transactions. Groups of 8
// columns are xored with the row, so that the rows of one store lie in different banks.
template <GemmPass P, int Size, bool Aligned>
__device__ __forceinline__ void finish_tile(
    const GemmProblem<BFloat16>& p, BFloat16* shared, int warp, std::int32_t row0, std::int32_t column0,
    float (&sums)[Fragments<Size>::kRowBlocks][Fragments<Size>::kColumnBlocks][4]) {
  constexpr int kSide = Size / 2;
  float* own = reinterpret_cast<float*>(shared) + warp * kSide * kSide;
  const auto group = [&](int row, int column8) { return own + row * kSide + (column8 ^ (row & 3)) * 8; };
  for_each_pair<Size>(sums, [&](float first, float second, int r, int c) {
    *reinterpret_cast<float2*>(group(r, c / 8) + c % 8) = make_float2(first, second);
  });
  __syncwarp();
  const bool pairs = GemmTraits<P>::kTwoRightSides && p.b2 != nullptr;
  const int pieces = pairs ? kSide / 16 : kSide / 8;  // of a row; two groups make one with two right sides
#pragma unroll 2
  for (int q = static_cast<int>(threadIdx.x) % 32; q < kSide * pieces; q += 32) {
    const int r = q / pieces, c = q % pieces;
    const std::int32_t row = row0 + r, column = column0 + c * kChunk;
    if (row >= p.m || column >= p.n) continue;
    float first[8], second[8] = {};
    load_floats(group(r, pairs ? 2 * c : c), first);
    if (pairs) load_floats(group(r, 2 * c + 1), second);
    finish_piece<P, Aligned>(p, row, column, first, second);
  }
}

template <GemmPass P, int Size, bool Aligned>
__global__ void __launch_bounds__(kThreads, Size == 128 ? 2 : 4)
    gemm_bf16(const GemmProblem<BFloat16>* __restrict__ problems, const std::int32_t* __restrict__ first_tile,
              std::int32_t num_problems) {
  using Traits = GemmTraits<P>;
  using Left = Copier<Size, Traits::kLeftAcross, Aligned>;
  using Right = Copier<Size, Traits::kRightAcross, Aligned>;
  MC_SHARED_DYNAMIC(BFloat16, shared);
  const GemmPlace place = place_of_block(problems, first_tile, num_problems);
  const GemmProblem<BFloat16>& p = problems[place.problem];
  const bool pairs = Traits::kTwoRightSides && p.b2 != nullptr;
  const std::int32_t row0 = place.row * Size, column0 = place.column * (pairs ? Size / 2 : Size), k = p.k;

  // With two right sides, blocks of 8 columns come from one and the other in turn: both sums of a column are
  // then a lane's own.
  const auto begin = [&](Left& left, Right& right, const BFloat16* a, const BFloat16* b) {
    left.begin(a, row0, p.m, k, Left::tile_row(), Left::Tile::kRowStep);
    const int row = Right::tile_row();
    if (pairs)
      right.begin(row / 8 % 2 == 0 ? b : p.b2, column0, p.n, k, row / 16 * 8 + row % 8,
                  Right::Tile::kRowStep / 2);
    else
      right.begin(b, column0, p.n, k, row, Right::Tile::kRowStep);
  };
  Left left;
  Right right;
  begin(left, right, p.a, p.b);
  const int stages_each = (k + kDepth - 1) / kDepth;
  const int num_stages = Traits::kTwoProducts && p.a2 != nullptr ? 2 * stages_each : stages_each;
  int next = 0, depth = k;  // the stage to copy next, and how much of k it and those after it hold
  const auto copy_next = [&] {
    if (next < num_stages) {
      if (Traits::kTwoProducts && next == stages_each) {
        begin(left, right, p.a2, p.b2);
        depth = k;
      }
      BFloat16* stage = shared + next % kStages * kStageElements<Size>;
      left.copy(stage, depth);
      right.copy(stage + Size * kDepth, depth);
      depth -= kDepth;
    }
    ++next;
    ptx::cp_async_commit();
  };
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) copy_next();

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / 2 * (Size / 2), warp_column = warp % 2 * (Size / 2);
  float sums[Fragments<Size>::kRowBlocks][Fragments<Size>::kColumnBlocks][4] = {};
  if constexpr (Traits::kAccumulates)
    for_each_pair<Size>(sums, [&](float& first, float& second, int r, int c) {
      const std::int32_t row = row0 + warp_row + r, column = column0 + warp_column + c;
      if (row >= p.m || column >= p.n) return;
      const float* at = p.sum + static_cast<std::int64_t>(row) * p.n + column;
      if constexpr (Aligned) {
        const float2 both = *reinterpret_cast<const float2*>(at);
        first = both.x, second = both.y;
      } else {
        first = at[0];
        if (column + 1 < p.n) second = at[1];
      }
    });

  Fragments<Size> fragments[2];
  ptx::cp_async_wait<kStages - 2>();
  __syncthreads();
  load_fragments<Size, Traits::kLeftAcross, Traits::kRightAcross>(shared, 0, warp_row, warp_column,
                                                                  fragments[0]);
  for (int s = 0; s < num_stages; ++s) {
    load_fragments<Size, Traits::kLeftAcross, Traits::kRightAcross>(
        shared + s % kStages * kStageElements<Size>, 1, warp_row, warp_column, fragments[1]);
    copy_next();  // to where stage s - 1 was: all warps have left it at the last barrier
    multiply<Size>(fragments[0], sums);
    ptx::cp_async_wait<kStages - 2>();  // stage s + 1 has come
    __syncthreads();
    if (s + 1 < num_stages)
      load_fragments<Size, Traits::kLeftAcross, Traits::kRightAcross>(
          shared + (s + 1) % kStages * kStageElements<Size>, 0, warp_row, warp_column, fragments[0]);
    multiply<Size>(fragments[1], sums);
  }
  ptx::cp_async_wait<0>();  // of the last groups, which are empty

  if constexpr (Traits::kAccumulates) {
    for_each_pair<Size>(sums, [&](float first, float second, int r, int c) {
      const std::int32_t row = row0 + warp_row + r, column = column0 + warp_column + c;
      if (row >= p.m || column >= p.n) return;
      float* at = p.sum + static_cast<std::int64_t>(row) * p.n + column;
      if constexpr (Aligned) {
        *reinterpret_cast<float2*>(at) = make_float2(first, second);
      } else {
        at[0] = first;
        if (column + 1 < p.n) at[1] = second;
      }
    });
  } else {
    finish_tile<P, Size, Aligned>(p, shared, warp, row0 + warp_row,
                                  column0 + (pairs ? warp_column / 2 : warp_column), sums);
  }
}

template <GemmPass P, int Size, bool Aligned>
void launch_tiles(Stream& stream, const GemmLaunch<BFloat16>& launch) {
  constexpr std::size_t kShared = kStages * kStageElements<Size> * sizeof(BFloat16);
  if (kShared > 48 * 1024) gpu::allow_shared(gemm_bf16<P, Size, Aligned>, kShared);
  MC_LAUNCH((gemm_bf16<P, Size, Aligned>),
            (gpu::Launch{dim3(static_cast<unsigned>(launch.num_tiles)), dim3(kThreads), cuda_stream(stream),
                         kShared}),
            launch.problems, launch.first_tile, launch.num_problems);
}

template <GemmPass P>
void launch_pass(Stream& stream, const GemmLaunch<BFloat16>& launch) {
  switch (launch.tile) {
    case GemmTile::large:
      return launch_tiles<P, 128, true>(stream, launch);
    case GemmTile::any_row:
      return launch_tiles<P, 64, false>(stream, launch);
    default:
      return launch_tiles<P, 64, true>(stream, launch);
  }
}

}  // namespace

void launch_gemm(Stream& stream, const GemmLaunch<BFloat16>& launch) {
  switch (launch.pass) {
    case GemmPass::hidden_forward:
      return launch_pass<GemmPass::hidden_forward>(stream, launch);
    case GemmPass::output_forward:
      return launch_pass<GemmPass::output_forward>(stream, launch);
    case GemmPass::hidden_backward:
      return launch_pass<GemmPass::hidden_backward>(stream, launch);
    case GemmPass::input_backward:
      return launch_pass<GemmPass::input_backward>(stream, launch);
    case GemmPass::weight_gradient:
      return launch_pass<GemmPass::weight_gradient>(stream, launch);
  }
}

}  // namespace moecollab::ops::cuda
