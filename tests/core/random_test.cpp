#include "moecollab/core/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "moecollab/core/error.hpp"

namespace moecollab {
namespace {

// Known answers of Philox4x32-10 (Salmon et al., 2011): counter and key all zero, and all ones.
TEST(Random, PhiloxKnownAnswers) {
  using Words = std::array<std::uint32_t, 4>;
  EXPECT_EQ(random_words(0, 0, 0), (Words{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(random_words(~0ull, ~0ull, ~0ull), (Words{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
}

TEST(Random, NormalHasItsMomentsAndTheSameDrawsInEveryType) {
  constexpr std::int64_t kN = 100000;
  Tensor f64(DType::f64, {kN}), f32(DType::f32, {kN});
  fill_normal(3, 4, 2.0, f64.view());
  fill_normal(3, 4, 2.0, f32.view());
  double sum = 0, squares = 0, cubes = 0;
  for (std::int64_t i = 0; i < kN; ++i) {
    const double x = f64.view().as<double>()[i] / 2.0;
    EXPECT_EQ(f32.view().as<float>()[i], static_cast<float>(2.0 * x));
    sum += x;
    squares += x * x;
    cubes += x * x * x;
  }
  // Five standard errors of mean, variance and third moment of a standard normal.
  EXPECT_LT(std::abs(sum / kN), 5.0 / std::sqrt(kN));
  EXPECT_LT(std::abs(squares / kN - 1.0), 5.0 * std::sqrt(2.0 / kN));
  EXPECT_LT(std::abs(cubes / kN), 5.0 * std::sqrt(15.0 / kN));
}

TEST(Random, PermutationHitsEveryIndexOnceAndDependsOnTheKey) {
  for (const std::int64_t size : {1, 2, 3, 17, 256, 1000}) {
    std::vector<std::int64_t> seen;
    for (std::int64_t i = 0; i < size; ++i) seen.push_back(permuted(9, 1, i, size));
    const std::vector<std::int64_t> order = seen;
    std::sort(seen.begin(), seen.end());
    for (std::int64_t i = 0; i < size; ++i) EXPECT_EQ(seen[static_cast<std::size_t>(i)], i) << size;
    if (size < 100) continue;
    std::int64_t same = 0;
    for (std::int64_t i = 0; i < size; ++i)
      same += permuted(10, 1, i, size) == order[static_cast<std::size_t>(i)] ? 1 : 0;
    EXPECT_LT(same, size / 10);
  }
  EXPECT_THROW(permuted(1, 1, 5, 5), InternalError);
}

TEST(Random, BelowStaysBelowAndReachesAll) {
  std::set<std::int64_t> seen;
  for (std::uint64_t i = 0; i < 1000; ++i) seen.insert(random_below(1, 2, i, 7));
  EXPECT_EQ(seen, (std::set<std::int64_t>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_THROW(random_below(1, 2, 3, 0), InternalError);
}

}  // namespace
}  // namespace moecollab
