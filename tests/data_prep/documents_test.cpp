#include "documents.hpp"

#include <gtest/gtest.h>

#include "moecollab/core/error.hpp"
#include "support/temporary_directory.hpp"
#include "utf8.hpp"

namespace moecollab::prepare {
namespace {

class DocumentsTest : public ::testing::Test {
 protected:
  std::vector<std::string> read(const std::string& content, Format format, const ReadOptions& options = {}) {
    std::ofstream(folder_ / "in", std::ios::binary) << content;
    DocumentReader reader({"d", folder_ / "in", format}, options);
    std::vector<std::string> texts;
    Document document;
    while (reader.next(document)) {
      texts.push_back(document.text);
      last_ = document;
    }
    return texts;
  }
  // The message of the DataError that reading ends with, without the folder.
  std::string error(const std::string& content, Format format, const ReadOptions& options = {}) {
    try {
      read(content, format, options);
    } catch (const DataError& problem) {
      const std::string message = problem.what();
      return message.starts_with(folder_ / "") ? message.substr(folder_.path().size() + 1)
                                               : "no file: " + message;
    }
    return "no error";
  }

  test::TemporaryDirectory folder_;
  Document last_;
};

using Texts = std::vector<std::string>;

TEST_F(DocumentsTest, TextIsCutAtBlankLines) {
  EXPECT_EQ(read("one\ntwo\n\n \t\r\nthree", Format::text), (Texts{"one\ntwo", "three"}));
  EXPECT_EQ(last_.line, 5);
  EXPECT_EQ(read("\n\n  indented\r\nkept\n", Format::text), (Texts{"  indented\r\nkept"}));
  EXPECT_EQ(read("\xef\xbb\xbfmarked", Format::text), (Texts{"marked"}));
}

TEST_F(DocumentsTest, TextIsCutAtALineOfOnesOwn) {
  ReadOptions options;
  options.document_separator = "%%";
  EXPECT_EQ(read("%%\none\n\ntwo\n%%\n\n%%\r\nthree %%\n", Format::text, options),
            (Texts{"one\n\ntwo", "three %%"}));
}

TEST_F(DocumentsTest, AFileIsKeptAsItIs) {
  EXPECT_EQ(read("a\n\n b\r\n", Format::file), (Texts{"a\n\n b\r\n"}));
  EXPECT_EQ(read("a", Format::file), (Texts{"a"}));
}

TEST_F(DocumentsTest, JsonLines) {
  ReadOptions options;
  options.text_field = "body";
  options.label_field = "stars";
  options.domain_field = "shop";
  EXPECT_EQ(
      read("{\"body\": \"a\\nb \\u00e9\", \"stars\": 5, \"shop\": \"books\"}\r\n\n", Format::jsonl, options),
      (Texts{"a\nb \xc3\xa9"}));
  EXPECT_EQ(last_.label, "5");
  EXPECT_EQ(last_.domain, "books");
}

TEST_F(DocumentsTest, TabSeparated) {
  EXPECT_EQ(read("good\tone\ttwo\r\nbad\tthree\n", Format::tsv), (Texts{"one\ttwo", "three"}));
  EXPECT_EQ(last_.label, "bad");
}

TEST_F(DocumentsTest, ErrorsNameFileAndLine) {
  ReadOptions label;
  label.label_field = "label";
  ReadOptions domain;
  domain.domain_field = "domain";
  ReadOptions small;
  small.max_document_bytes = 10;
  EXPECT_EQ(error("", Format::text), "in: the file is empty");
  EXPECT_EQ(error("one\nab\xff", Format::text).substr(0, 42), "in:2: byte 3 of the line (0xff) is not UTF");
  EXPECT_EQ(error("{}", Format::jsonl), "in:1: field \"text\" is missing");
  EXPECT_EQ(error("{\"text\":\"a\"}\n{\"text\":\"a\"}", Format::jsonl, label),
            "in:1: field \"label\" is missing");
  EXPECT_EQ(error("{\"text\":\"a\"}", Format::jsonl, domain), "in:1: field \"domain\" is missing");
  EXPECT_EQ(error("{\"text\":\"a\",\"label\":[]}", Format::jsonl, label),
            "in:1: field \"label\" is a array, expected a string");
  EXPECT_EQ(error("\n{\"text\":3}", Format::jsonl), "in:2: field \"text\" is a number, expected a string");
  EXPECT_EQ(error("[]", Format::jsonl), "in:1: a JSON array, expected an object");
  EXPECT_EQ(error("{\"text\":\"a\"}\n{\"text\":\n", Format::jsonl).substr(0, 23), "in:2: not a JSON value ");
  EXPECT_EQ(error("{\"text\":\"\\ud800\"}", Format::jsonl).substr(0, 22), "in:1: not a JSON value");
  EXPECT_EQ(error("a\tb\nno tab\n", Format::tsv), "in:2: no tab: a TSV line is label<TAB>text");
  EXPECT_EQ(error("\tb\n", Format::tsv), "in:1: the label is missing: a TSV line is label<TAB>text");
  EXPECT_EQ(error("12345678901", Format::text, small).substr(0, 37), "in:1: the line is longer than 10 byte");
  EXPECT_EQ(error("a\n\n123456\n123456", Format::text, small).substr(0, 38),
            "in:3: the document that begins here is");
}

TEST_F(DocumentsTest, RefusesWhatIsNoFile) {
  EXPECT_THROW(DocumentReader({"d", folder_ / "none", Format::text}, {}), DataError);
  EXPECT_THROW(DocumentReader({"d", folder_.path(), Format::text}, {}), DataError);
  EXPECT_THROW(DocumentReader({"d", "/dev/null", Format::text}, {}), DataError);
}

// A line across many read blocks.
TEST_F(DocumentsTest, LongLines) {
  const std::string line(5 << 20, 'x');
  EXPECT_EQ(read(line + "\ny\n\n" + line, Format::text), (Texts{line + "\ny", line}));
}

TEST(Utf8, FindsTheFirstBadByte) {
  const std::size_t none = std::string_view::npos;
  const std::vector<std::pair<std::string, std::size_t>> cases = {
      {"", none},
      {"plain ascii of some length", none},
      {"\xc2\x80 \xdf\xbf \xe0\xa0\x80 \xed\x9f\xbf \xee\x80\x80 \xef\xbf\xbf", none},
      {"\xf0\x90\x80\x80 \xf4\x8f\xbf\xbf", none},
      {"12345678\x80", 8},  // a continuation alone
      {"a\xc0\xaf", 1},     // overlong
      {"a\xc1\xbf", 1},
      {"\xe0\x9f\xbf", 0},
      {"\xf0\x8f\xbf\xbf", 0},
      {"ab\xed\xa0\x80", 2},    // a surrogate
      {"\xf4\x90\x80\x80", 0},  // above U+10FFFF
      {"\xf5\x80\x80\x80", 0},
      {"xyz\xe2\x82", 3},  // cut short
      {"\xe2\x28\xa1", 0},
      {"\xf0\x9f\x98\x28", 0},
      {"\xff", 0},
  };
  for (const auto& [text, at] : cases)
    EXPECT_EQ(find_invalid_utf8(text), at) << ::testing::PrintToString(text);
}

}  // namespace
}  // namespace moecollab::prepare
