#include "ops/cpu/rope.hpp"

#include <cmath>
#include <vector>

#include "moecollab/core/bfloat16.hpp"
#include "moecollab/numerics/rope.hpp"
#include "ops/cpu/blocks.hpp"
#include "ops/cpu/convert.hpp"

namespace moecollab::ops::cpu {
namespace {

// Cosines and sines of the positions seen so far. They cost more than the rotation itself, every layer needs
// the same ones, and an entry's value does not depend on when it was made.
template <class R>
class AngleTable {
 public:
  // Rows of Dh cosines and sines (half and half) for positions [0, num_positions).
  const R* rows(double theta, std::int64_t Dh, std::int64_t num_positions) {
    if (theta != theta_ || Dh != Dh_) entries_.clear();
    theta_ = theta;
    Dh_ = Dh;
    const auto have = static_cast<std::int64_t>(entries_.size()) / std::max<std::int64_t>(1, Dh);
    if (have < num_positions) {
      entries_.resize(static_cast<std::size_t>(num_positions * Dh));
      const std::int64_t half = Dh / 2;
      R* const to = entries_.data();
#pragma omp parallel for schedule(static) if (num_positions - have > 64)
      for (std::int64_t position = have; position < num_positions; ++position)
        for (std::int64_t i = 0; i < half; ++i) {
          const double angle = numerics::rope_angle(static_cast<std::int32_t>(position), theta, i, Dh);
          to[position * Dh + i] = static_cast<R>(std::cos(angle));
          to[position * Dh + half + i] = static_cast<R>(std::sin(angle));
        }
    }
    return entries_.data();
  }

 private:
  double theta_ = 0.0;
  std::int64_t Dh_ = 0;
  std::vector<R> entries_;
};

}  // namespace

template <class A, class Acc>
void rope(const std::int32_t* positions, std::int64_t T, std::int64_t H, std::int64_t Dh, double theta,
          int direction, A* x) {
  if (T == 0) return;
  thread_local AngleTable<Acc> table;
  const std::int64_t num_positions = std::int64_t{*std::max_element(positions, positions + T)} + 1;
  const Acc* const angles = table.rows(theta, Dh, num_positions);
  const std::int64_t half = Dh / 2;
  const auto sign = static_cast<Acc>(direction);
  for_rows(T, H * Dh, [=](std::int64_t t) {
    const Acc *cosine = angles + positions[t] * Dh, *sine = cosine + half;
    for (std::int64_t h = 0; h < H; ++h) {
      A *first = x + (t * H + h) * Dh, *second = first + half;
#pragma omp simd
      for (std::int64_t i = 0; i < half; ++i) {
        const auto turned = numerics::rotate(load(first[i]), load(second[i]), cosine[i], sign * sine[i]);
        store(first[i], turned.first);
        store(second[i], turned.second);
      }
    }
  });
}

template void rope<float, float>(const std::int32_t*, std::int64_t, std::int64_t, std::int64_t, double, int,
                                 float*);
template void rope<BFloat16, float>(const std::int32_t*, std::int64_t, std::int64_t, std::int64_t, double,
                                    int, BFloat16*);
template void rope<double, double>(const std::int32_t*, std::int64_t, std::int64_t, std::int64_t, double, int,
                                   double*);

}  // namespace moecollab::ops::cpu
