// Uneven exchanges for tests of groups: zeros, gaps, and an empty rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "moecollab/comm/communicator.hpp"

namespace moecollab {

// Rows from `from` to `to` in round `seed`: uneven, with zeros; the last rank neither sends nor receives (in
// groups of three or more), and in round 1 everything goes to rank 0.
inline std::int64_t rows_between(int from, int to, int size, int seed) {
  if (size > 2 && (from == size - 1 || to == size - 1)) return 0;
  if (seed == 1) return to == 0 ? 5 + from : 0;
  return (from * 7 + to * 3 + seed * 5) % 4;
}

struct Exchange {
  std::vector<std::int64_t> send_begin, send_rows, recv_begin, recv_rows;
  std::int64_t send_total = 0, recv_total = 0;
  RowExchange rows() const { return {send_begin, send_rows, recv_begin, recv_rows}; }
};

// `gap` rows are left unused before each peer's, and peers are laid out backwards: begins are not implied.
inline Exchange plan_exchange(int rank, int size, int seed, std::int64_t scale, std::int64_t gap) {
  Exchange e;
  const auto n = static_cast<std::size_t>(size);
  e.send_begin.resize(n), e.send_rows.resize(n), e.recv_begin.resize(n), e.recv_rows.resize(n);
  for (int p = size - 1; p >= 0; --p) {
    const auto i = static_cast<std::size_t>(p);
    e.send_rows[i] = scale * rows_between(rank, p, size, seed);
    e.recv_rows[i] = scale * rows_between(p, rank, size, seed);
    e.send_begin[i] = e.send_total + gap;
    e.recv_begin[i] = e.recv_total + gap;
    e.send_total = e.send_begin[i] + e.send_rows[i];
    e.recv_total = e.recv_begin[i] + e.recv_rows[i];
  }
  return e;
}

}  // namespace moecollab
