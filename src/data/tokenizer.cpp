#include "moecollab/data/tokenizer.hpp"

#include <fmt/format.h>
#include <sentencepiece_processor.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "moecollab/core/error.hpp"

namespace moecollab::data {
namespace {

constexpr std::string_view kMagic = "MCTOKEN1";
constexpr std::size_t kMaxModelBytes = std::size_t{64} << 20;
constexpr std::string_view kSpaceMark = "\xe2\x96\x81";  // U+2581, which SentencePiece writes for a space
// Longer lines are encoded in pieces, so that one line of a gigabyte needs no more memory than a page of
// text.
constexpr std::size_t kMaxSpanBytes = 1 << 16;

std::string hash_of(std::string_view kind, std::string_view model) {
  XXH3_state_t* state = XXH3_createState();
  XXH3_128bits_reset(state);
  XXH3_128bits_update(state, kind.data(), kind.size());
  XXH3_128bits_update(state, "\0", 1);
  XXH3_128bits_update(state, model.data(), model.size());
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

// The end of the longest prefix of at most `limit` bytes that does not cut a UTF-8 sequence.
std::size_t cut_at_character(std::string_view text, std::size_t limit) {
  if (text.size() <= limit) return text.size();
  std::size_t end = limit;
  while (end > limit - 3 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;
  return end;
}

std::string spaces_for_marks(std::string_view piece) {
  std::string text;
  text.reserve(piece.size());
  while (!piece.empty()) {
    if (piece.starts_with(kSpaceMark)) {
      text.push_back(' ');
      piece.remove_prefix(kSpaceMark.size());
    } else {
      text.push_back(piece.front());
      piece.remove_prefix(1);
    }
  }
  return text;
}

}  // namespace

const char* to_string(TokenizerKind kind) { return kind == TokenizerKind::bytes ? "bytes" : "sentencepiece"; }

struct Tokenizer::State {
  TokenizerKind kind = TokenizerKind::bytes;
  std::string model;
  std::string hash;
  sentencepiece::SentencePieceProcessor processor;
  std::vector<std::string> texts;           // [V] what each token stands for
  std::vector<std::int32_t> token_bytes;    // [V]
  std::array<std::int32_t, 256> byte_id{};  // the token of each byte
  std::vector<std::int32_t> newline_ids;    // how "\n" is written
  std::int32_t bos_id = -1;
  std::int32_t eos_id = -1;

  void encode_span(std::string_view span, std::vector<std::int32_t>& ids) const;
  void encode_line(std::string_view line, std::vector<std::int32_t>& ids) const;
  void check_round_trip(std::string_view text, std::span<const std::int32_t> ids) const;
};

void Tokenizer::State::encode_span(std::string_view span, std::vector<std::int32_t>& ids) const {
  if (span.empty()) return;
  std::vector<int> pieces;
  const auto status = processor.Encode(span, &pieces);
  if (!status.ok()) throw DataError("SentencePiece could not encode a text: " + status.ToString());
  ids.insert(ids.end(), pieces.begin(), pieces.end());
}

void Tokenizer::State::encode_line(std::string_view line, std::vector<std::int32_t>& ids) const {
  // U+2581 in the text itself would come back as a space, so it goes in as its three bytes.
  while (!line.empty()) {
    const std::size_t mark = line.find(kSpaceMark);
    std::string_view before = line.substr(0, mark);
    while (!before.empty()) {
      const std::size_t end = cut_at_character(before, kMaxSpanBytes);
      encode_span(before.substr(0, end), ids);
      before.remove_prefix(end);
    }
    if (mark == std::string_view::npos) return;
    for (const char c : kSpaceMark) ids.push_back(byte_id[static_cast<unsigned char>(c)]);
    line.remove_prefix(mark + kSpaceMark.size());
  }
}

void Tokenizer::State::check_round_trip(std::string_view text, std::span<const std::int32_t> ids) const {
  std::size_t at = 0;
  for (const std::int32_t id : ids) {
    const std::string& piece = texts[static_cast<std::size_t>(id)];
    if (text.substr(at, piece.size()) != piece) break;
    at += piece.size();
  }
  if (at != text.size())
    throw DataError(
        fmt::format("the tokenizer does not give this text back from byte {} on (near \"{}\"): its model "
                    "rewrites text. Use a "
                    "tokenizer trained by moecollab-prepare, or one with identity normalisation, byte "
                    "fallback, no dummy prefix "
                    "and no removal of extra whitespace",
                    at, std::string(text.substr(at, 24))));
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::bytes() {
  auto state = std::make_unique<State>();
  for (int byte = 0; byte < 256; ++byte) {
    state->texts.emplace_back(1, static_cast<char>(byte));
    state->byte_id[static_cast<std::size_t>(byte)] = byte;
  }
  state->bos_id = 256;
  state->eos_id = 257;
  state->texts.resize(259);
  for (const std::string& text : state->texts)
    state->token_bytes.push_back(static_cast<std::int32_t>(text.size()));
  state->hash = hash_of("bytes", "");
  return Tokenizer(std::move(state));
}

Tokenizer Tokenizer::sentencepiece(std::string model) {
  if (model.size() > kMaxModelBytes)
    throw DataError(
        fmt::format("a tokenizer model of {} bytes; at most {} are accepted", model.size(), kMaxModelBytes));
  auto state = std::make_unique<State>();
  state->kind = TokenizerKind::sentencepiece;
  const auto status = state->processor.LoadFromSerializedProto(model);
  if (model.empty() || !status.ok()) throw DataError("not a SentencePiece model: " + status.ToString());
  const auto& processor = state->processor;
  state->byte_id.fill(-1);
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    const std::string& piece = processor.IdToPiece(id);
    if (processor.IsByte(id)) {
      const int byte = std::stoi(piece.substr(3, 2), nullptr, 16);  // "<0xAB>"
      state->byte_id[static_cast<std::size_t>(byte)] = id;
      state->texts.emplace_back(1, static_cast<char>(byte));
    } else if (processor.IsControl(id) || processor.IsUnknown(id)) {
      state->texts.emplace_back();
    } else {
      state->texts.push_back(spaces_for_marks(piece));
    }
    state->token_bytes.push_back(static_cast<std::int32_t>(state->texts.back().size()));
  }
  if (std::ranges::count(state->byte_id, -1) != 0)
    throw DataError("the SentencePiece model lacks byte pieces: train it with byte fallback");
  state->bos_id = processor.bos_id();
  state->eos_id = processor.eos_id();
  if (state->eos_id < 0)
    throw DataError("the SentencePiece model has no eos piece, which ends every document");
  state->encode_span("\n", state->newline_ids);
  state->hash = hash_of("sentencepiece", model);
  state->model = std::move(model);
  return Tokenizer(std::move(state));
}

Tokenizer Tokenizer::from_parts(const std::string& kind, std::string model, const std::string& source) {
  try {
    if (kind == "bytes" && model.empty()) return bytes();
    if (kind == "sentencepiece") return sentencepiece(std::move(model));
  } catch (const DataError& error) {
    throw DataError(source + ": " + error.what());
  }
  throw DataError(
      fmt::format("{}: tokenizer kind \"{}\" with a model of {} bytes; known kinds are bytes (no model) and "
                  "sentencepiece",
                  source, kind, model.size()));
}

std::vector<std::uint8_t> Tokenizer::serialise() const {
  // magic, kind, NUL, model
  std::string bytes(kMagic);
  bytes += to_string(state_->kind);
  bytes.push_back('\0');
  bytes += state_->model;
  return {bytes.begin(), bytes.end()};
}

Tokenizer Tokenizer::deserialise(std::span<const std::uint8_t> bytes, const std::string& source) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::size_t end = text.substr(0, 64).find('\0');
  if (!text.starts_with(kMagic) || end == std::string_view::npos)
    throw DataError(fmt::format("{}: not a tokenizer file (it starts with \"{}\")", source, kMagic));
  return from_parts(std::string(text.substr(kMagic.size(), end - kMagic.size())),
                    std::string(text.substr(end + 1)), source);
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  if (state_->kind == TokenizerKind::bytes) {
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  ids.reserve(text.size() / 3);
  std::string_view rest = text;
  while (true) {
    const std::size_t newline = rest.find('\n');
    state_->encode_line(rest.substr(0, newline), ids);
    if (newline == std::string_view::npos) break;
    ids.insert(ids.end(), state_->newline_ids.begin(), state_->newline_ids.end());
    rest.remove_prefix(newline + 1);
  }
  state_->check_round_trip(text, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= vocab_size())
      throw DataError(fmt::format("token {} is outside the vocabulary [0, {})", id, vocab_size()));
    text += state_->texts[static_cast<std::size_t>(id)];
  }
  return text;
}

TokenizerKind Tokenizer::kind() const { return state_->kind; }
std::int64_t Tokenizer::vocab_size() const { return static_cast<std::int64_t>(state_->texts.size()); }
std::int32_t Tokenizer::eos_id() const { return state_->eos_id; }
std::int32_t Tokenizer::bos_id() const { return state_->bos_id; }
std::span<const std::int32_t> Tokenizer::token_bytes() const { return state_->token_bytes; }
const std::string& Tokenizer::model() const { return state_->model; }
const std::string& Tokenizer::hash() const { return state_->hash; }

}  // namespace moecollab::data
