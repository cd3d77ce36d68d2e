// How near two computations of the same tiny model must be.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "moecollab/core/param_store.hpp"
#include "support/gradient_check.hpp"

namespace moecollab::test {

// Bounds are c * n * u, u the unit roundoff. n = 64 is the longest sum (40 tokens, 11 words), rounded up; c =
// 40 counts the operations a number passes one after another, forward and backward through two layers.
inline double rounding_bound(DType dtype) {
  return 40.0 * 64.0 * std::ldexp(1.0, dtype == DType::f64 ? -53 : -24);
}

// A slot of every block that `part` holds against the same block of `whole`. Each tensor is measured by its
// largest value, and by at least a hundredth of the largest of all, because where terms cancel the roundoff
// of the terms stays.
inline void expect_near(const ParamStore& part, const ParamStore& whole, TensorView (Block::*slot)() const,
                        double relative) {
  double largest = 0.0;
  for (const Block& block : whole.blocks()) largest = std::max(largest, max_abs((block.*slot)()));
  for (const Block& block : part.blocks()) {
    const Block* other = whole.find_block(block.kind, block.uuid);
    ASSERT_NE(other, nullptr);
    for (std::size_t i = 0; i < block.params.size(); ++i) {
      const auto index = static_cast<std::int32_t>(i);
      const ConstTensorView want = other->part((other->*slot)(), index);
      EXPECT_LE(max_abs_difference(block.part((block.*slot)(), index), want),
                relative * std::max(max_abs(want), 0.01 * largest))
          << to_string(block.kind) << " " << to_string(block.uuid) << " " << block.params[i].spec.name;
    }
  }
}

}  // namespace moecollab::test
