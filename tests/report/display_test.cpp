#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <sstream>

#include "moecollab/core/error.hpp"
#include "moecollab/report/progress_line.hpp"
#include "moecollab/report/routing_health.hpp"
#include "moecollab/report/table.hpp"

namespace moecollab::report {
namespace {

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(ProgressLine, ShowsFirstAndLastAndNoMoreThanItsRate) {
  std::ostringstream out;
  ProgressLine line(out, {1, 100, 2.0, false, false}, 50.0);
  for (int step = 1; step <= 100; ++step) line.step(step, 50.0 + 0.1 * step, {});
  const std::string text = out.str();
  EXPECT_EQ(text.find("step   1/100"), 0U);
  EXPECT_NE(text.find("step 100/100"), std::string::npos);
  EXPECT_GE(count(text, "\n"), 5U);  // 10 s at a line per 2 s, and the ends
  EXPECT_LE(count(text, "\n"), 7U);
}

TEST(ProgressLine, WithoutATerminalNothingRedraws) {
  std::ostringstream out;
  ProgressLine line(out, {1, 50, 0.0, false, false}, 0.0);
  for (int step = 1; step <= 50; ++step) line.step(step, step, {2.5, 12345.0, 1e-3, 0.5});
  EXPECT_EQ(count(out.str(), "\r"), 0U);
  EXPECT_EQ(count(out.str(), "\033"), 0U);
  EXPECT_EQ(count(out.str(), "\n"), 50U);
}

TEST(ProgressLine, SaysTheValuesAndTheTimeLeft) {
  std::ostringstream out;
  ProgressLine line(out, {11, 20, 0.0, false, false}, 100.0);
  line.step(11, 103.0, {2.34567, 12345.0, 9.1e-4, 0.5});  // 3 s for one step, nine to go
  EXPECT_EQ(out.str(), "step 11/20  loss 2.3457  lr 9.10e-04  grad norm 0.500  12.3k tokens/s  0:27 left\n");
}

TEST(ProgressLine, OnATerminalTheBarIsErasedBeforeEachLine) {
  std::ostringstream out;
  ProgressLine line(out, {1, 4, 0.0, true, false}, 0.0);
  line.step(1, 1.0, {});
  EXPECT_NE(out.str().find("[#######.......................] 1/4"), std::string::npos);
  out.str("");
  line.note("saved");
  EXPECT_EQ(out.str(), "\r\033[Ksaved\n");
  for (int step = 2; step <= 4; ++step) line.step(step, step, {});
  EXPECT_EQ(count(out.str(), "\r\033[K"), 3U);  // note, and the lines of steps 3 and 4; step 2 found no bar
  EXPECT_EQ(count(out.str(), "] "), 2U);        // bars of steps 2 and 3: none is left at the end
  EXPECT_EQ(out.str().back(), '\n');
}

TEST(ProgressLine, TerminalAndNoColorAreHonoured) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_FALSE(wants_bar(ends[1]));
  EXPECT_FALSE(wants_color(ends[1]));
  ::close(ends[0]);
  ::close(ends[1]);
  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY);
  if (terminal < 0 || ::isatty(terminal) != 1) GTEST_SKIP() << "no pseudo-terminal here";
  ::setenv("TERM", "xterm", 1);
  ::unsetenv("NO_COLOR");
  EXPECT_TRUE(wants_bar(terminal));
  EXPECT_TRUE(wants_color(terminal));
  ::setenv("NO_COLOR", "1", 1);
  EXPECT_TRUE(wants_bar(terminal));
  EXPECT_FALSE(wants_color(terminal));
  ::setenv("TERM", "dumb", 1);
  EXPECT_FALSE(wants_bar(terminal));
  ::close(terminal);
}

TEST(ShortNumber, HasThreeDigits) {
  EXPECT_EQ(short_number(0.0), "0.00");
  EXPECT_EQ(short_number(9.994), "9.99");
  EXPECT_EQ(short_number(9.996), "10.0");
  EXPECT_EQ(short_number(99.96), "100");
  EXPECT_EQ(short_number(999.4), "999");
  EXPECT_EQ(short_number(999.6), "1.00k");
  EXPECT_EQ(short_number(12345.0), "12.3k");
  EXPECT_EQ(short_number(1.2e6), "1.20M");
  EXPECT_EQ(short_number(-1500.0), "-1.50k");
  EXPECT_EQ(short_number(std::nan("")), "?");
}

TEST(ShortDuration, CountsUpToHours) {
  EXPECT_EQ(short_duration(0.4), "0:00");
  EXPECT_EQ(short_duration(59.6), "1:00");
  EXPECT_EQ(short_duration(3723.0), "1:02:03");
  EXPECT_EQ(short_duration(-1.0), "?");
  EXPECT_EQ(short_duration(INFINITY), "?");
}

TEST(Table, AlignsTextByCharacters) {
  Table t({"domain", "anchor", "gate"});
  t.add_row({"loi \xc3\xa9t\xc3\xa9", "1.5", "1.25"});
  t.add_row({"a", "10.25", "-"});
  EXPECT_EQ(t.to_text(),
            "domain   anchor  gate\n"
            "-------  ------  ----\n"
            "loi \xc3\xa9t\xc3\xa9     1.5  1.25\n"
            "a         10.25     -\n");
}

TEST(Table, WritesMarkdown) {
  Table t({"domain", "bits"});
  t.add_row({"a|b", "1.5"});
  EXPECT_EQ(t.to_markdown(), "| domain | bits |\n| --- | ---: |\n| a\\|b | 1.5 |\n");
}

TEST(Table, RefusesARowOfAnotherLength) {
  Table t({"a", "b"});
  EXPECT_THROW(t.add_row({"1"}), InternalError);
  EXPECT_EQ(fixed(1.005, 1), "1.0");
  EXPECT_EQ(fixed(NAN, 1), "-");
}

TEST(RoutingHealth, MeetsTheKnownCases) {
  constexpr double kBound = 16 * 2.3e-16;  // E terms of the entropy, each rounded a few times
  const std::vector<std::int64_t> even{7, 7, 7, 7}, one{0, 40, 0, 0}, half{5, 5, 0, 0}, none{0, 0, 0};
  EXPECT_NEAR(routing_health(even).utilisation, 1.0, kBound);
  EXPECT_EQ(routing_health(even).max_mean_load, 1.0);
  EXPECT_EQ(routing_health(even).dead_experts, 0);
  EXPECT_NEAR(routing_health(one).utilisation, 0.25, kBound);
  EXPECT_EQ(routing_health(one).max_mean_load, 4.0);
  EXPECT_EQ(routing_health(one).dead_experts, 3);
  EXPECT_NEAR(routing_health(half).utilisation, 0.5, kBound);
  EXPECT_EQ(routing_health(none).utilisation, 0.0);
  EXPECT_EQ(routing_health(none).dead_experts, 0);
}

TEST(RoutingHealth, DeadIsBelowATenthOfTheMean) {
  const std::vector<std::int64_t> at{1, 10, 19}, below{0, 11, 19};  // mean 10
  EXPECT_EQ(routing_health(at).dead_experts, 0);
  EXPECT_EQ(routing_health(below).dead_experts, 1);
}

}  // namespace
}  // namespace moecollab::report
