// Documents from text, JSONL and TSV files, one at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "line_reader.hpp"

namespace moecollab::prepare {

enum class Format : std::uint8_t {
  text,   // documents are separated by blank lines, or by a line of one's own
  file,   // the file is one document
  jsonl,  // one JSON object a line
  tsv,    // label <TAB> text
};
const char* to_string(Format format);
std::optional<Format> format_from_string(const std::string& name);

struct InputFile {
  std::string domain;  // empty: each record names its own (domain field)
  std::string path;
  Format format = Format::text;
};

struct ReadOptions {
  std::string text_field = "text";
  std::string label_field;         // empty: no labels
  std::string domain_field;        // empty: the domain of the input
  std::string document_separator;  // a line; empty: blank lines separate
  std::int64_t max_document_bytes = std::int64_t{64} << 20;
};

struct Document {
  std::string text;
  std::string domain;
  std::optional<std::string> label;
  std::int64_t line = 0;  // where it begins
};

class DocumentReader {
 public:
  DocumentReader(const InputFile& input, const ReadOptions& options);

  // The next document that holds more than white space; false at the end. Throws DataError naming file and
  // line.
  bool next(Document& document);
  std::int64_t bytes_read() const { return lines_.bytes_read(); }
  std::string xxh3_128() const { return lines_.xxh3_128(); }

 private:
  bool next_text(Document& document);
  bool next_file(Document& document);
  bool next_jsonl(Document& document);
  bool next_tsv(Document& document);
  bool is_separator(std::string_view line) const;
  void append(Document& document, std::string_view line) const;
  [[noreturn]] void fail(std::int64_t line, const std::string& what) const;

  InputFile input_;
  ReadOptions options_;
  LineReader lines_;
  bool done_ = false;
};

}  // namespace moecollab::prepare
