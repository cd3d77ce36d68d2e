#include "moecollab/data/tokenizer.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "moecollab/core/error.hpp"

namespace moecollab::data {
namespace {

TEST(ByteTokenizer, GivesEveryByteBackAndCountsIt) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text.push_back(static_cast<char>(byte));
  const auto ids = tokenizer.encode(text);
  ASSERT_EQ(ids.size(), 256u);
  for (int byte = 0; byte < 256; ++byte) EXPECT_EQ(ids[static_cast<std::size_t>(byte)], byte);
  EXPECT_EQ(tokenizer.decode(ids), text);
  EXPECT_EQ(tokenizer.vocab_size(), 259);
  std::int64_t bytes = 0;
  for (const auto id : ids) bytes += tokenizer.token_bytes()[static_cast<std::size_t>(id)];
  EXPECT_EQ(bytes, 256);
}

TEST(ByteTokenizer, ControlTokensAreNoText) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  const std::vector<std::int32_t> ids = {tokenizer.bos_id(), 'a', tokenizer.eos_id(), 258};
  EXPECT_EQ(tokenizer.decode(ids), "a");
  for (const std::int32_t id : {256, 257, 258})
    EXPECT_EQ(tokenizer.token_bytes()[static_cast<std::size_t>(id)], 0);
}

TEST(ByteTokenizer, RefusesIdsOutsideTheVocabulary) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  for (const std::int32_t id : {-1, 259}) {
    const std::vector<std::int32_t> ids = {id};
    EXPECT_THROW(tokenizer.decode(ids), DataError);
  }
}

TEST(Tokenizer, SurvivesItsFile) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  const auto bytes = tokenizer.serialise();
  const Tokenizer again = Tokenizer::deserialise(bytes, "tokenizer.bin");
  EXPECT_EQ(again.hash(), tokenizer.hash());
  EXPECT_EQ(again.serialise(), bytes);
  EXPECT_EQ(tokenizer.hash().size(), 32u);
}

TEST(Tokenizer, NamesTheFileThatIsNoTokenizer) {
  const std::vector<std::string> wrong = {"",
                                          "MCTOKEN1",
                                          "MCTOKEN1bytes",
                                          std::string("MCTOKEN1bytes\0x", 15),
                                          std::string("MCTOKEN1words\0", 14),
                                          std::string("MCTOKEN1sentencepiece\0not a model", 34),
                                          std::string("MCTOKEN1sentencepiece\0", 22)};
  for (const std::string& content : wrong) {
    const std::vector<std::uint8_t> bytes(content.begin(), content.end());
    try {
      Tokenizer::deserialise(bytes, "some/tokenizer.bin");
      ADD_FAILURE() << "accepted: " << content;
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find("some/tokenizer.bin"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace moecollab::data
