// How dense work is cut into tiles. Tiles depend on the shape alone, never on the thread count, so that the
// bits of a result do not either.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moecollab::ops::cpu {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct TileGrid {
  std::int64_t rows, cols;            // of the matrix
  std::int64_t tile_rows, tile_cols;  // of a tile

  std::int64_t col_tiles() const { return ceil_div(cols, tile_cols); }
  std::int64_t size() const { return ceil_div(rows, tile_rows) * col_tiles(); }

  struct Tile {
    std::int64_t row, col, rows, cols;
  };
  Tile tile(std::int64_t index) const {
    const std::int64_t row = index / col_tiles() * tile_rows, col = index % col_tiles() * tile_cols;
    return {row, col, std::min(tile_rows, rows - row), std::min(tile_cols, cols - col)};
  }
};

// Tiles of [rows, cols] for one gemm() each: large ones amortise packing, but a small matrix is cut finer so
// that there is work for many cores.
inline TileGrid gemm_tiles(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kEnoughTiles = 32, kMinRows = 64, kMinCols = 64;
  TileGrid grid{rows, cols, 256, 512};
  while (grid.size() < kEnoughTiles && (grid.tile_rows > kMinRows || grid.tile_cols > kMinCols)) {
    if (grid.tile_cols > grid.tile_rows || grid.tile_rows == kMinRows)
      grid.tile_cols /= 2;
    else
      grid.tile_rows /= 2;
  }
  return grid;
}

}  // namespace moecollab::ops::cpu
