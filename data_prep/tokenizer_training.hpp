// Trains a SentencePiece tokenizer. The same sentences give the same bits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moecollab/data/tokenizer.hpp"

namespace moecollab::prepare {

enum class ModelType : std::uint8_t { bpe, unigram };

inline constexpr std::int64_t kMinVocabSize = 384;  // control tokens, newline, tab, 256 bytes, and some room

// `sentences` are lines of text without their newline. Every UTF-8 text survives the tokenizer: identity
// normalisation, no dummy prefix, spaces kept, bytes for unknown characters, newline and tab tokens of their
// own. V may come out smaller than `vocab_size` when the text is short. Throws UsageError: V below
// kMinVocabSize; DataError: no text, or SentencePiece refuses.
data::Tokenizer train_tokenizer(ModelType type, std::int64_t vocab_size, std::vector<std::string> sentences);

}  // namespace moecollab::prepare
