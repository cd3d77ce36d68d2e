#include "moecollab/core/uuid.hpp"

#include <gtest/gtest.h>

#include <set>

#include "moecollab/core/error.hpp"

namespace moecollab {
namespace {

TEST(Uuid, TextFormRoundTripsAndKeepsAllBits) {
  const Uuid uuid = Uuid::from_bits(0xfedcba9876543210ull, 0x0123456789abcdefull);
  EXPECT_EQ(to_string(uuid), "fedcba98-7654-8210-8123-456789abcdef");  // version 8, variant 10
  EXPECT_EQ(Uuid::parse(to_string(uuid)), uuid);
}

TEST(Uuid, SeedAndSlotDecide) {
  std::set<std::string> all;
  for (std::uint64_t seed = 0; seed < 20; ++seed)
    for (std::uint64_t slot = 0; slot < 20; ++slot)
      all.insert(to_string(Uuid::from_seed(seed, slot)).substr(0, 8));
  EXPECT_GT(all.size(), 395u);  // 400 draws of the leading 32 bits: a collision is a one in 50,000 event
  EXPECT_EQ(Uuid::from_seed(1, 2), Uuid::from_seed(1, 2));
}

TEST(Uuid, RefusesWhatIsNotOne) {
  for (const char* text : {"", "fedcba98-7654-8210-8123-456789abcde", "fedcba98-7654-8210-8123-456789abcdeg",
                           "fedcba9807654-8210-8123-456789abcdef", "FEDCBA98-7654-8210-8123-456789ABCDEF"})
    EXPECT_THROW(Uuid::parse(text), DataError) << text;
}

}  // namespace
}  // namespace moecollab
