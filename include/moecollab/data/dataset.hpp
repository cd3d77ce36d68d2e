// Reads a token file (token_file.hpp) in windows; its memory does not grow with the file.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "moecollab/data/token_file.hpp"
#include "moecollab/data/tokenizer.hpp"

namespace moecollab::data {

// A half-open range of tokens or documents.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// Const members may be called by any number of threads. Every member that reads throws DataError, naming
// file, dataset and offset, for content that cannot be, and IoError when the file system fails. Move-only.
class Dataset {
 public:
  // Checks the whole frame: format, tokenizer and its hash, coverage and order of the documents, domains,
  // labels, counts. Token ids are checked as they are read.
  static Dataset open(const std::string& path);
  Dataset(Dataset&&) noexcept;
  Dataset& operator=(Dataset&&) noexcept;
  ~Dataset();

  const std::string& path() const;
  const Tokenizer& tokenizer() const;
  // Throws DataError when the tokens are of another tokenizer than the one with `hash` (a model's).
  void check_tokenizer(const std::string& hash) const;
  std::int64_t vocab_size() const;
  std::span<const std::string> domains() const;
  std::span<const std::string> labels() const;  // empty: not labelled
  std::string content_hash()
      const;  // of sources, tokenizer, seed and split: says whether a resumed run reads the same

  std::int64_t num_tokens(Split split) const;
  std::int64_t num_documents(Split split) const;
  Range domain_tokens(Split split, std::int32_t domain) const;  // documents of a domain are neighbours
  Range domain_documents(Split split, std::int32_t domain) const;

  // Tokens [begin, begin + out.size()).
  void read_tokens(Split split, std::int64_t begin, std::span<std::int32_t> out) const;
  std::int64_t document_of(Split split, std::int64_t token) const;
  // End offsets of documents [first, first + out.size()).
  void read_document_ends(Split split, std::int64_t first, std::span<std::int64_t> out) const;
  Range document_tokens(Split split, std::int64_t document) const;
  std::int32_t document_label(Split split, std::int64_t document) const;  // -1: not labelled

 private:
  struct State;
  explicit Dataset(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace moecollab::data
