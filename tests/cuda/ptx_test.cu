// Each PTX wrapper against its definition in the PTX manual, written out here once more: on a GPU this tests
// the inline assembly, without one the emulation.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda/device_support.hpp"
#include "moecollab/core/launch.cuh"
#include "ops/cuda/ptx.cuh"

namespace moecollab::test {
namespace {

namespace ptx = moecollab::ops::cuda::ptx;

template <class T>
class DeviceArray {  // of n elements, copied in and out
 public:
  explicit DeviceArray(const std::vector<T>& host) : n_(host.size()) {
    check_cuda(cudaMalloc(reinterpret_cast<void**>(&data_), n_ * sizeof(T)), "cudaMalloc");
    check_cuda(cudaMemcpy(data_, host.data(), n_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> values(n_);
    check_cuda(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t n_;
};

class PtxTest : public OnDevice {};

// ---- ldmatrix ----

template <bool Transposed>
__global__ void load_matrices(const std::uint16_t* matrices, unsigned* out) {
  MC_SHARED(std::uint16_t, shared, [32 * 8]);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 8; ++i) shared[lane * 8 + i] = matrices[lane * 8 + i];
  __syncwarp();
  unsigned r[4];
  if constexpr (Transposed)
    ptx::ldmatrix_x4_trans(r, shared + lane * 8);
  else
    ptx::ldmatrix_x4(r, shared + lane * 8);
  for (int j = 0; j < 4; ++j) out[lane * 4 + j] = r[j];
}

// PTX manual, ldmatrix: thread l of the warp receives, of matrix j, in register j the elements 2 (l mod 4)
// and 2 (l mod 4) + 1 of row floor(l / 4), the first in the low half; with .trans the matrix is loaded in
// column-major form, so of column floor(l / 4). Row i of matrix j starts where thread 8 j + i says.
TEST_F(PtxTest, LdmatrixGivesEachLaneItsElements) {
  std::vector<std::uint16_t> matrices;  // element (row, col) of matrix j holds 4096 + 64 j + 8 row + col
  for (int j = 0; j < 4; ++j)
    for (int row = 0; row < 8; ++row)
      for (int col = 0; col < 8; ++col)
        matrices.push_back(static_cast<std::uint16_t>(4096 + 64 * j + 8 * row + col));
  const auto element = [](int j, int row, int col) {
    return static_cast<unsigned>(4096 + 64 * j + 8 * row + col);
  };
  const DeviceArray<std::uint16_t> in(matrices);
  const DeviceArray<unsigned> plain(std::vector<unsigned>(128)), transposed(std::vector<unsigned>(128));
  MC_LAUNCH(load_matrices<false>, (gpu::Launch{1, 32}), in.data(), plain.data());
  MC_LAUNCH(load_matrices<true>, (gpu::Launch{1, 32}), in.data(), transposed.data());
  const std::vector<unsigned> p = plain.host(), t = transposed.host();
  for (int lane = 0; lane < 32; ++lane) {
    for (int j = 0; j < 4; ++j) {
      const int major = lane / 4, minor = lane % 4 * 2;
      const auto at = static_cast<std::size_t>(lane * 4 + j);
      EXPECT_EQ(p[at], element(j, major, minor) | element(j, major, minor + 1) << 16) << lane << " " << j;
      EXPECT_EQ(t[at], element(j, minor, major) | element(j, minor + 1, major) << 16) << lane << " " << j;
    }
  }
}

// ---- mma ----

__global__ void multiply(const unsigned* a, const unsigned* b, const float* c, float* d) {
  const int lane = static_cast<int>(threadIdx.x);
  unsigned a_lane[4], b_lane[2];
  float c_lane[4], d_lane[4];
  for (int i = 0; i < 4; ++i) a_lane[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) b_lane[i] = b[lane * 2 + i];
  for (int i = 0; i < 4; ++i) c_lane[i] = c[lane * 4 + i];
  ptx::mma_bf16_16816(d_lane, a_lane, b_lane, c_lane);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = d_lane[i];
}

// PTX manual, matrix fragments for mma.m16n8k16 with .bf16: with groupID = lane / 4 and threadID = lane % 4,
// element i of a lane's fragment is
//   a (i = 0..7): row groupID for i in {0, 1, 4, 5}, else groupID + 8; column threadID * 2 + (i & 1), + 8 for
//   i >= 4; b (i = 0..3): row threadID * 2 + (i & 1), + 8 for i >= 2; column groupID; c, d (i = 0..3): row
//   groupID for i < 2, else groupID + 8; column threadID * 2 + (i & 1);
// and element i of a and b lies in half i & 1 of register i / 2.
struct Position {
  int row, col;
};
Position a_position(int lane, int i) {
  const bool upper = i == 0 || i == 1 || i == 4 || i == 5;
  return {lane / 4 + (upper ? 0 : 8), lane % 4 * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
Position b_position(int lane, int i) { return {lane % 4 * 2 + (i & 1) + (i >= 2 ? 8 : 0), lane / 4}; }
Position c_position(int lane, int i) { return {lane / 4 + (i < 2 ? 0 : 8), lane % 4 * 2 + (i & 1)}; }

unsigned bf16_bits(float value) {  // exact values only
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, 4);
  return bits >> 16;
}

struct Matrices {
  float a[16][16], b[16][8], c[16][8];
};

void expect_product(const Matrices& m) {
  std::vector<unsigned> a(128, 0), b(64, 0);
  std::vector<float> c(128);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const Position p = a_position(lane, i);
      a[static_cast<std::size_t>(lane * 4 + i / 2)] |= bf16_bits(m.a[p.row][p.col]) << 16 * (i & 1);
    }
    for (int i = 0; i < 4; ++i) {
      const Position p = b_position(lane, i);
      b[static_cast<std::size_t>(lane * 2 + i / 2)] |= bf16_bits(m.b[p.row][p.col]) << 16 * (i & 1);
    }
    for (int i = 0; i < 4; ++i) {
      const Position p = c_position(lane, i);
      c[static_cast<std::size_t>(lane * 4 + i)] = m.c[p.row][p.col];
    }
  }
  const DeviceArray<unsigned> a_device(a), b_device(b);
  const DeviceArray<float> c_device(c), d_device(std::vector<float>(128));
  MC_LAUNCH(multiply, (gpu::Launch{1, 32}), a_device.data(), b_device.data(), c_device.data(),
            d_device.data());
  const std::vector<float> d = d_device.host();
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Position p = c_position(lane, i);
      float sum = m.c[p.row][p.col];
      for (int k = 0; k < 16; ++k) sum += m.a[p.row][k] * m.b[k][p.col];
      EXPECT_EQ(d[static_cast<std::size_t>(lane * 4 + i)], sum) << "row " << p.row << " column " << p.col;
    }
  }
}

// One number per row of a, which names the row, rows of b that name (k, column): the product names the place
// of every element. Small whole numbers: every product and sum is exact.
TEST_F(PtxTest, MmaMultipliesFragmentsOfTheManualsLayout) {
  for (int shift = 0; shift < 16; ++shift) {
    Matrices m{};
    for (int row = 0; row < 16; ++row) m.a[row][(row + shift) % 16] = static_cast<float>(row + 1);
    for (int k = 0; k < 16; ++k)
      for (int col = 0; col < 8; ++col) m.b[k][col] = static_cast<float>(8 * k + col + 1);
    for (int row = 0; row < 16; ++row)
      for (int col = 0; col < 8; ++col) m.c[row][col] = static_cast<float>(4096 * (8 * row + col));
    expect_product(m);
  }
}

TEST_F(PtxTest, MmaSumsAllProducts) {
  Matrices m{};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k) m.a[row][k] = static_cast<float>((row * 7 + k * 3) % 17 - 8);
  for (int k = 0; k < 16; ++k)
    for (int col = 0; col < 8; ++col) m.b[k][col] = static_cast<float>((k * 5 + col * 11) % 13 - 6);
  for (int row = 0; row < 16; ++row)
    for (int col = 0; col < 8; ++col) m.c[row][col] = static_cast<float>(row - col) * 0.5f;
  expect_product(m);
}

// ---- cp.async ----

// Thread i copies piece i of `in`, of which `valid[i]` bytes exist, in a group of its own number of
// `kGroups`.
template <int Bytes>
__global__ void copy_pieces(const unsigned char* in, const int* valid, unsigned char* out) {
  MC_SHARED(unsigned char, pieces, [32 * 16]);
  const int lane = static_cast<int>(threadIdx.x);
  ptx::cp_async<Bytes>(pieces + lane * Bytes, in + lane * Bytes, valid[lane]);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  const int other = 31 - lane;
  for (int i = 0; i < Bytes; ++i) out[other * Bytes + i] = pieces[other * Bytes + i];
}

template <int Bytes>
void expect_copies() {
  std::vector<unsigned char> in;
  for (int i = 0; i < 32 * Bytes; ++i) in.push_back(static_cast<unsigned char>(i % 251 + 1));
  std::vector<int> valid;
  for (int lane = 0; lane < 32; ++lane) valid.push_back(lane % (Bytes + 1));  // none to all
  const DeviceArray<unsigned char> from(in), to(std::vector<unsigned char>(in.size(), 0xee));
  const DeviceArray<int> valid_device(valid);
  MC_LAUNCH(copy_pieces<Bytes>, (gpu::Launch{1, 32}), from.data(), valid_device.data(), to.data());
  const std::vector<unsigned char> out = to.host();
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < Bytes; ++i) {
      const auto at = static_cast<std::size_t>(lane * Bytes + i);
      EXPECT_EQ(out[at], i < valid[static_cast<std::size_t>(lane)] ? in[at] : 0)
          << Bytes << " " << lane << " " << i;
    }
  }
}
TEST_F(PtxTest, CpAsyncCopiesAndFillsWithZeros) {
  expect_copies<16>();
  expect_copies<8>();
  expect_copies<4>();
}

// Three groups in flight; a wait for all but the latest n makes the others readable by the thread that waits.
__global__ void wait_in_turn(const int4* in, int* out) {
  MC_SHARED(int4, pieces, [3 * 32]);
  const int lane = static_cast<int>(threadIdx.x);
  for (int group = 0; group < 3; ++group) {
    ptx::cp_async<16>(&pieces[group * 32 + lane], in + group * 32 + lane);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<2>();
  out[lane] = pieces[lane].w;
  ptx::cp_async_wait<1>();
  out[32 + lane] = pieces[32 + lane].x;
  ptx::cp_async_wait<0>();
  out[64 + lane] = pieces[64 + lane].y;
}
TEST_F(PtxTest, CpAsyncWaitCoversTheOldestGroups) {
  std::vector<int4> in;
  for (int i = 0; i < 96; ++i) in.push_back({4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3});
  const DeviceArray<int4> from(in);
  const DeviceArray<int> to(std::vector<int>(96));
  MC_LAUNCH(wait_in_turn, (gpu::Launch{1, 32}), from.data(), to.data());
  const std::vector<int> out = to.host();
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(out[static_cast<std::size_t>(lane)], 4 * lane + 3);
    EXPECT_EQ(out[static_cast<std::size_t>(32 + lane)], 4 * (32 + lane));
    EXPECT_EQ(out[static_cast<std::size_t>(64 + lane)], 4 * (64 + lane) + 1);
  }
}

}  // namespace
}  // namespace moecollab::test
