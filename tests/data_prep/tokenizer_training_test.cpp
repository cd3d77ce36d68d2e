#include "tokenizer_training.hpp"

#include <gtest/gtest.h>

#include <random>

#include "moecollab/core/error.hpp"

namespace moecollab::prepare {
namespace {

std::vector<std::string> sentences() {
  const std::vector<std::string> words = {"the",
                                          "river",
                                          "runs",
                                          "past",
                                          "every",
                                          "stone",
                                          "bridge",
                                          "and",
                                          "mill",
                                          "while",
                                          "(x",
                                          "==",
                                          "y):",
                                          "return",
                                          "42",
                                          "na\xc3\xafve",
                                          "stra\xc3\x9f"
                                          "e"};
  std::mt19937 random(7);
  std::vector<std::string> made;
  for (int i = 0; i < 400; ++i) {
    std::string line(random() % 3 * 4, ' ');
    for (int w = 0; w < 9; ++w) line += words[random() % words.size()] + " ";
    made.push_back(line);
  }
  return made;
}

class TrainedTokenizer : public ::testing::TestWithParam<ModelType> {};

void expect_round_trip(const data::Tokenizer& tokenizer, const std::string& text) {
  const auto ids = tokenizer.encode(text);
  EXPECT_EQ(tokenizer.decode(ids), text);
  std::size_t bytes = 0;
  for (const std::int32_t id : ids) {
    ASSERT_GE(id, 0);
    ASSERT_LT(id, tokenizer.vocab_size());
    bytes += static_cast<std::size_t>(tokenizer.token_bytes()[static_cast<std::size_t>(id)]);
  }
  EXPECT_EQ(bytes, text.size()) << text;
}

TEST_P(TrainedTokenizer, GivesEveryTextBack) {
  const data::Tokenizer tokenizer = train_tokenizer(GetParam(), 420, sentences());
  const std::vector<std::string> texts = {
      "",
      "the river runs past every stone",
      " leading and trailing ",
      "\n",
      "\n\n\n two\n",
      "\ttabs\t\tand   many    spaces\n    indented\n",
      "windows\r\nlines\r\n",
      std::string("a\0b", 3),
      "U+2581 \xe2\x96\x81 is no space: \xe2\x96\x81\xe2\x96\x81",
      "\xc2\xa0no-break, \xef\xbb\xbfmark, \xe2\x80\xa8line separator",
      "composed \xc3\xa9 and e\xcc\x81, full width \xef\xbc\xa1, ligature \xef\xac\x81",
      "\xf0\x9f\x98\x80 \xe6\xbc\xa2\xe5\xad\x97 \xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d \xf4\x8f\xbf\xbf",
      "<s> </s> <unk> <pad> <0x0A> <0xFF>",
      std::string(200000, 'a') + "\xc3\xa9" + std::string(70000, ' '),
  };
  for (const std::string& text : texts) expect_round_trip(tokenizer, text);
}

TEST_P(TrainedTokenizer, GivesRandomUnicodeBack) {
  const data::Tokenizer tokenizer = train_tokenizer(GetParam(), 420, sentences());
  std::mt19937 random(11);
  const std::vector<std::uint32_t> ranges = {0x80, 0x80, 0x80, 0x800, 0x3000, 0xd800, 0x110000};
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (int i = 0; i < 40; ++i) {
      std::uint32_t code = random() % ranges[random() % ranges.size()];
      if (code >= 0xd800 && code < 0xe000) code = 0x2581;  // no surrogates; the space mark instead
      if (code < 0x80) {
        text += static_cast<char>(code);
      } else if (code < 0x800) {
        text += {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
      } else if (code < 0x10000) {
        text += {static_cast<char>(0xe0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 63)),
                 static_cast<char>(0x80 | (code & 63))};
      } else {
        text += {static_cast<char>(0xf0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 63)),
                 static_cast<char>(0x80 | (code >> 6 & 63)), static_cast<char>(0x80 | (code & 63))};
      }
    }
    expect_round_trip(tokenizer, text);
  }
}

TEST_P(TrainedTokenizer, IsTheSameBitsEachTime) {
  const data::Tokenizer one = train_tokenizer(GetParam(), 420, sentences());
  const data::Tokenizer two = train_tokenizer(GetParam(), 420, sentences());
  EXPECT_EQ(one.model(), two.model());
  EXPECT_EQ(one.hash(), two.hash());
  const data::Tokenizer again = data::Tokenizer::deserialise(one.serialise(), "tokenizer.bin");
  EXPECT_EQ(again.encode("the river\n"), one.encode("the river\n"));
  EXPECT_NE(one.hash(), data::Tokenizer::bytes().hash());
}

TEST_P(TrainedTokenizer, WritesCommonWordsInFewTokens) {
  const data::Tokenizer tokenizer = train_tokenizer(GetParam(), 600, sentences());
  // 31 bytes; on so few words the unigram trainer keeps short pieces.
  EXPECT_LE(tokenizer.encode("the river runs past every stone").size(),
            GetParam() == ModelType::bpe ? 12u : 24u);
}

INSTANTIATE_TEST_SUITE_P(Models, TrainedTokenizer, ::testing::Values(ModelType::bpe, ModelType::unigram),
                         [](const auto& at) { return at.param == ModelType::bpe ? "bpe" : "unigram"; });

TEST(TokenizerTraining, RefusesWhatCannotWork) {
  EXPECT_THROW(train_tokenizer(ModelType::bpe, kMinVocabSize - 1, sentences()), UsageError);
  EXPECT_THROW(train_tokenizer(ModelType::bpe, 420, {}), DataError);
}

}  // namespace
}  // namespace moecollab::prepare
