// ldmatrix and mma.sync m16n8k16: which lane holds which element.
#include <cstring>

#include "machine.hpp"

namespace cudasim {

namespace {
constexpr unsigned kFullWarp = 0xffffffffu;

struct Ldmatrix {
  const std::uint16_t* row;
  unsigned* out;
};
template <int Count, bool Transposed>
void ldmatrix_all(void* const* lanes, unsigned) {
  for (int l = 0; l < 32; ++l) {
    for (int j = 0; j < Count; ++j) {
      const auto at = [&](int row, int col) {
        return unsigned{static_cast<const Ldmatrix*>(lanes[8 * j + row])->row[col]};
      };
      const int r = l / 4, c = l % 4 * 2;
      static_cast<const Ldmatrix*>(lanes[l])->out[j] =
          Transposed ? at(c, r) | at(c + 1, r) << 16 : at(r, c) | at(r, c + 1) << 16;
    }
  }
}

struct Mma {
  const unsigned *a, *b;
  const float* c;
  float* d;
};
float half_of(unsigned pair, int half) {
  const unsigned bits = (half != 0 ? pair >> 16 : pair) << 16;
  float f = 0;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
void mma_all(void* const* lanes, unsigned) {
  alignas(64) float a[16][16], b[16][8], d[16][8];
  for (int l = 0; l < 32; ++l) {
    const Mma& x = *static_cast<const Mma*>(lanes[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int h = 0; h < 2; ++h) {
      a[g][t + h] = half_of(x.a[0], h);
      a[g + 8][t + h] = half_of(x.a[1], h);
      a[g][t + 8 + h] = half_of(x.a[2], h);
      a[g + 8][t + 8 + h] = half_of(x.a[3], h);
      b[t + h][g] = half_of(x.b[0], h);
      b[t + 8 + h][g] = half_of(x.b[1], h);
      d[g][t + h] = x.c[h];
      d[g + 8][t + h] = x.c[2 + h];
    }
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < 32; ++l) {
    const Mma& x = *static_cast<const Mma*>(lanes[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int h = 0; h < 2; ++h) {
      x.d[h] = d[g][t + h];
      x.d[2 + h] = d[g + 8][t + h];
    }
  }
}
}  // namespace

void ldmatrix(int count, bool transposed, const std::uint16_t* row, unsigned* out, Loc loc) {
  static constexpr CollectiveFunction kFunctions[2][3] = {
      {&ldmatrix_all<1, false>, &ldmatrix_all<2, false>, &ldmatrix_all<4, false>},
      {&ldmatrix_all<1, true>, &ldmatrix_all<2, true>, &ldmatrix_all<4, true>}};
  Ldmatrix x{row, out};
  collective(transposed ? "ldmatrix.trans" : "ldmatrix", kFullWarp, kFunctions[transposed][count / 2], &x,
             false, loc);
}

void mma_bf16_16816(const unsigned* a, const unsigned* b, const float* c, float* d, Loc loc) {
  Mma x{a, b, c, d};
  collective("mma.sync.m16n8k16", kFullWarp, &mma_all, &x, false, loc);
}

}  // namespace cudasim
