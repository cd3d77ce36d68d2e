// The schedules at the points where their value is known without the formula.
#include <gtest/gtest.h>

#include <cmath>

#include "moecollab/train/train_config.hpp"

namespace moecollab::train {
namespace {

OptimizerConfig config(Schedule schedule) {
  OptimizerConfig c;
  c.lr = 8.0;
  c.min_lr_ratio = 0.25;
  c.warmup_steps = 4;
  c.schedule = schedule;
  return c;
}

TEST(LearningRate, WarmsUpLinearlyToThePeak) {
  for (const Schedule s : {Schedule::constant, Schedule::cosine, Schedule::wsd}) {
    EXPECT_EQ(learning_rate(config(s), 1, 104), 2.0);
    EXPECT_EQ(learning_rate(config(s), 2, 104), 4.0);
    EXPECT_EQ(learning_rate(config(s), 4, 104), 8.0);
  }
}

TEST(LearningRate, CosineMeetsItsQuarterPoints) {
  const OptimizerConfig c = config(Schedule::cosine);
  constexpr double kBound = 8.0 * 4 * 2.3e-16;          // a few roundings of numbers up to 8
  EXPECT_NEAR(learning_rate(c, 54, 104), 5.0, kBound);  // half way: the mean of 8 and 2
  EXPECT_NEAR(learning_rate(c, 29, 104), 5.0 + 3.0 * std::sqrt(0.5), kBound);  // a quarter
  EXPECT_NEAR(learning_rate(c, 79, 104), 5.0 - 3.0 * std::sqrt(0.5), kBound);  // three quarters
  EXPECT_NEAR(learning_rate(c, 104, 104), 2.0, kBound);
  EXPECT_NEAR(learning_rate(c, 500, 104), 2.0, kBound);
}

TEST(LearningRate, WsdIsFlatAndThenFallsLinearly) {
  OptimizerConfig c = config(Schedule::wsd);
  c.decay_steps = 12;
  EXPECT_EQ(learning_rate(c, 50, 104), 8.0);
  EXPECT_EQ(learning_rate(c, 92, 104), 8.0);
  EXPECT_EQ(learning_rate(c, 98, 104), 5.0);
  EXPECT_EQ(learning_rate(c, 104, 104), 2.0);
  c.decay_steps = 0;  // a fifth: 20 of 100
  EXPECT_EQ(learning_rate(c, 80, 100), 8.0);
  EXPECT_EQ(learning_rate(c, 90, 100), 5.0);
  EXPECT_EQ(learning_rate(c, 100, 100), 2.0);
}

TEST(LearningRate, ConstantStays) {
  EXPECT_EQ(learning_rate(config(Schedule::constant), 104, 104), 8.0);
  EXPECT_EQ(learning_rate(config(Schedule::constant), 1000, 104), 8.0);
}

TEST(LearningRate, NoWarmUpStartsBelowThePeakOnlyByTheSchedule) {
  OptimizerConfig c = config(Schedule::constant);
  c.warmup_steps = 0;
  EXPECT_EQ(learning_rate(c, 1, 10), 8.0);
  c.schedule = Schedule::cosine;
  EXPECT_LT(learning_rate(c, 1, 10), 8.0);
}

TEST(LearningRate, AllStepsWarmUp) {
  for (const Schedule s : {Schedule::cosine, Schedule::wsd}) {
    EXPECT_EQ(learning_rate(config(s), 4, 4), 8.0);
    EXPECT_TRUE(std::isfinite(learning_rate(config(s), 5, 4)));
  }
}

}  // namespace
}  // namespace moecollab::train
