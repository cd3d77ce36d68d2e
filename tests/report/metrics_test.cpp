#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "moecollab/core/error.hpp"
#include "moecollab/report/metrics_writer.hpp"
#include "moecollab/report/record.hpp"

namespace moecollab::report {
namespace {

class MetricsFile : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() /
            (std::string("moecollab_metrics_") +
             ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".jsonl");
    std::filesystem::remove(path_);
  }
  void TearDown() override { std::filesystem::remove(path_); }
  void put(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }
  std::string content() const {
    std::stringstream text;
    text << std::ifstream(path_, std::ios::binary).rdbuf();
    return text.str();
  }
  std::filesystem::path path_;
};

TEST(Record, KeepsOrderAndTypes) {
  Record r;
  r.set("loss", 0.1 + 0.2)
      .set("tokens", std::int64_t{9223372036854775807})
      .set("kind", "eval")
      .set("load", std::vector<double>{1.5, 2.0})
      .set("picks", std::vector<std::int64_t>{3, 0});
  EXPECT_EQ(r.to_json(), R"({"loss": 0.30000000000000004, "tokens": 9223372036854775807, "kind": "eval", )"
                         R"("load": [1.5, 2], "picks": [3, 0]})");
  r.set("loss", 1.0);
  EXPECT_EQ(r.to_json().find("\"loss\": 1,"), 1U);
  EXPECT_EQ(Record().to_json(), "{}");
}

TEST(Record, WritesNumbersThatAreNotFiniteAsNull) {
  Record r;
  r.set("a", std::nan("")).set("b", std::numeric_limits<double>::infinity());
  r.set("c", std::vector<double>{-std::numeric_limits<double>::infinity(), 1.0});
  EXPECT_EQ(r.to_json(), R"({"a": null, "b": null, "c": [null, 1]})");
}

TEST(Record, EscapesText) {
  Record r;
  r.set("a\"b", "line\nend\\ \x01 \xc3\xa9");
  EXPECT_EQ(r.to_json(), "{\"a\\\"b\": \"line\\u000aend\\\\ \\u0001 \xc3\xa9\"}");
}

TEST(Record, HasAKeyForEveryPhase) {
  std::array<double, kNumPhases> ms{};
  for (std::size_t i = 0; i < kNumPhases; ++i) ms[i] = static_cast<double>(i) + 0.5;
  const std::string json = Record().set_phases_ms(ms).to_json();
  EXPECT_NE(json.find("\"other_ms\": 0.5"), std::string::npos);
  EXPECT_NE(json.find("\"all_to_all_ms\": 4.5"), std::string::npos);
  EXPECT_NE(json.find("\"eval_ms\": 11.5"), std::string::npos);
}

TEST_F(MetricsFile, EachLineIsReadableAsSoonAsItIsWritten) {
  MetricsWriter writer(path_.string(), 0);
  writer.write(1, Record().set("loss", 2.5));
  EXPECT_EQ(content(), "{\"step\": 1, \"loss\": 2.5}\n");
  writer.write(2, Record());
  EXPECT_EQ(content(), "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2}\n");
}

TEST_F(MetricsFile, AfterAResumeEveryStepStandsThereOnce) {
  {
    MetricsWriter writer(path_.string(), 0);
    for (int step = 1; step <= 5; ++step) writer.write(step, Record().set("loss", 10.0 * step));
  }
  {
    std::ofstream(path_, std::ios::app) << "{\"step\": 6, \"lo";  // the process died here
  }
  {
    MetricsWriter writer(path_.string(), 3);
    for (int step = 4; step <= 6; ++step) writer.write(step, Record().set("loss", 10.0 * step));
  }
  std::string expected;
  for (int step = 1; step <= 6; ++step)
    expected += "{\"step\": " + std::to_string(step) + ", \"loss\": " + std::to_string(10 * step) + "}\n";
  EXPECT_EQ(content(), expected);
}

TEST_F(MetricsFile, ATornLastLineIsCutEvenWhenItsStepWasKept) {
  const std::string whole = "{\"step\": 1}\n";
  for (std::size_t length = 1; length < whole.size(); ++length) {
    put(whole + whole.substr(0, length));
    MetricsWriter writer(path_.string(), 9);
    EXPECT_EQ(content(), whole) << length;
  }
}

TEST_F(MetricsFile, AFreshRunStartsAnEmptyFile) {
  put("{\"step\": 1}\n");
  MetricsWriter writer(path_.string(), 0);
  EXPECT_EQ(content(), "");
}

TEST_F(MetricsFile, ADamagedLineEndsWhatIsKept) {
  put(std::string("{\"step\": 1}\n\0\0\n{\"step\": 2}\n", 27));
  MetricsWriter writer(path_.string(), 9);
  EXPECT_EQ(content(), "{\"step\": 1}\n");
}

TEST(MetricsWriter, NamesThePathItCannotWrite) {
  try {
    MetricsWriter writer("/no/such/folder/metrics.jsonl", 0);
    FAIL();
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("/no/such/folder/metrics.jsonl"), std::string::npos);
  }
}

TEST(MetricsWriter, AFullDiskIsAnError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP();
  const auto link = std::filesystem::temp_directory_path() / "moecollab_full_disk.jsonl";
  std::filesystem::remove(link);
  std::filesystem::create_symlink("/dev/full", link);
  EXPECT_THROW(
      {
        MetricsWriter writer(link.string(), 0);
        writer.write(1, Record().set("loss", 1.0));
      },
      IoError);
  std::filesystem::remove(link);
}

}  // namespace
}  // namespace moecollab::report
