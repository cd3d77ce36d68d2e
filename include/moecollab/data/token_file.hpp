// The token file: tokenised documents of one or more domains in one HDF5 file, and how it is written.
//
//   /train, /validation           groups, split by document; attributes documents, tokens, bytes in total,
//   and
//                                 "<domain>.documents", "<domain>.tokens", "<domain>.bytes" for each domain
//     tokens       [N] u16 (V <= 65536) or i32   documents in a row, each ended by eos
//     doc_offsets  [n+1] i64                     document i is tokens [doc_offsets[i], doc_offsets[i+1])
//     doc_domain   [n] i32                       index into /domains, never falling: a domain is one range
//     doc_label    [n] i32                       index into /labels; only in a labelled file
//   /domains, /labels             lists of names
//   /tokenizer   [..] u8          the model; attribute kind (see tokenizer.hpp)
//   /token_bytes [V] i32          bytes of text behind each token, 0 for control tokens
//   /sources/path, /sources/xxh3_128   what it was made from
//   attributes of the root: format, format_version, tokenizer_hash, vocab_size, seed, validation_fraction,
//   sources_hash
//
// All datasets are contiguous, little-endian and readable with h5py.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moecollab/data/tokenizer.hpp"

namespace moecollab::data {

inline constexpr const char* kTokenFileFormat = "moecollab-tokens";
inline constexpr std::int64_t kTokenFileVersion = 1;
inline constexpr std::int64_t kMaxDomains = 1024;

enum class Split : std::uint8_t { train, validation };
const char* to_string(Split split);

// Which side a document falls on depends on its text and the seed alone, not on its neighbours or its place:
// the same text is never on both sides, whatever files it comes from.
Split split_of(std::string_view text, std::uint64_t seed, double validation_fraction);

struct TokenFileOptions {
  std::uint64_t seed = 1;
  double validation_fraction = 0.05;  // of the documents, [0, 1)
};

struct SourceFile {
  std::string path;      // as given
  std::string xxh3_128;  // of the content, hex
};

struct DomainCounts {
  std::int64_t documents = 0;
  std::int64_t tokens = 0;  // with eos
  std::int64_t bytes = 0;   // of text
};

// Writes a token file in bounded memory: documents go to part files beside the output (`path` + ".parts"),
// one per split and domain, and `finish` joins them. What is not finished leaves nothing behind. Bits depend
// only on the calls. All members throw IoError when the disk fails or is full.
class TokenFileWriter {
 public:
  // `tokenizer` must outlive the writer. Throws UsageError: a fraction outside [0, 1).
  TokenFileWriter(const std::string& path, const Tokenizer& tokenizer, const TokenFileOptions& options);
  TokenFileWriter(TokenFileWriter&&) noexcept;
  TokenFileWriter& operator=(TokenFileWriter&&) noexcept;
  ~TokenFileWriter();

  // Index of a domain or label, made on first use. Domains keep this order in the file; labels are stored
  // sorted by name, unless `set_labels` fixed them. Throws DataError: more than kMaxDomains, or an unlisted
  // label.
  std::int32_t domain(const std::string& name);
  std::int32_t label(const std::string& name);
  void set_labels(const std::vector<std::string>& names);

  // `ids` = tokenizer.encode(text). `label` -1: none; either every document of a file has one, or none has
  // (DataError).
  void add(std::int32_t domain, std::string_view text, std::span<const std::int32_t> ids,
           std::int32_t label = -1);

  std::span<const std::string> domains() const;
  const DomainCounts& counts(Split split, std::int32_t domain) const;
  // Publishes the file under its name. Throws DataError: no document at all.
  void finish(std::span<const SourceFile> sources);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moecollab::data
