// Text to token ids and back, bit for bit. A tokenizer travels inside every token file and checkpoint; its
// hash tells whether two of them belong together.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moecollab::data {

enum class TokenizerKind : std::uint8_t {
  bytes,          // ids 0..255 are the bytes, then bos, eos, pad: V = 259
  sentencepiece,  // a SentencePiece model (BPE or unigram) with byte fallback
};
const char* to_string(TokenizerKind kind);

// Immutable after construction: any number of threads may call the const members. Move-only.
class Tokenizer {
 public:
  static Tokenizer bytes();
  // `model` is the content of a SentencePiece model file. Throws DataError: not a model, or one without the
  // 256 byte pieces or without an eos piece.
  static Tokenizer sentencepiece(std::string model);
  // What `serialise` wrote. Throws DataError naming `source` (the file it came from).
  static Tokenizer deserialise(std::span<const std::uint8_t> bytes, const std::string& source);
  static Tokenizer from_parts(const std::string& kind, std::string model, const std::string& source);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // No bos and no eos is added. sum(token_bytes of the ids) == text.size() and decode(ids) == text, or it
  // throws DataError (a model made elsewhere may rewrite text; those trained by moecollab-prepare never do).
  std::vector<std::int32_t> encode(std::string_view text) const;
  // Control tokens (bos, eos, pad) decode to nothing. Bytes of an unfinished UTF-8 sequence are passed on as
  // they are. Throws DataError for an id outside [0, V).
  std::string decode(std::span<const std::int32_t> ids) const;

  TokenizerKind kind() const;
  std::int64_t vocab_size() const;  // V
  std::int32_t eos_id() const;      // ends every document; also what a text may be generated from
  std::int32_t bos_id() const;      // -1: none
  std::span<const std::int32_t> token_bytes()
      const;                         // [V] bytes of text behind each token, 0 for control tokens
  const std::string& model() const;  // empty for bytes
  const std::string& hash() const;   // XXH3-128 of kind and model, 32 hex digits
  std::vector<std::uint8_t> serialise() const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace moecollab::data
