#include "documents.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "moecollab/core/error.hpp"

namespace moecollab::prepare {
namespace {

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos;
}

std::string_view without_return(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

}  // namespace

const char* to_string(Format format) {
  switch (format) {
    case Format::text:
      return "text";
    case Format::file:
      return "file";
    case Format::jsonl:
      return "jsonl";
    case Format::tsv:
      return "tsv";
  }
  return "?";
}

std::optional<Format> format_from_string(const std::string& name) {
  for (const Format format : {Format::text, Format::file, Format::jsonl, Format::tsv})
    if (name == to_string(format)) return format;
  return std::nullopt;
}

DocumentReader::DocumentReader(const InputFile& input, const ReadOptions& options)
    : input_(input), options_(options), lines_(input.path, options.max_document_bytes) {}

void DocumentReader::fail(std::int64_t line, const std::string& what) const {
  throw DataError(fmt::format("{}:{}: {}", input_.path, line, what));
}

bool DocumentReader::next(Document& document) {
  while (!done_) {
    document = {};
    document.domain = input_.domain;
    bool found = false;
    switch (input_.format) {
      case Format::text:
        found = next_text(document);
        break;
      case Format::file:
        found = next_file(document);
        break;
      case Format::jsonl:
        found = next_jsonl(document);
        break;
      case Format::tsv:
        found = next_tsv(document);
        break;
    }
    done_ = !found || done_;
    if (found && !is_blank(document.text)) return true;
  }
  return false;
}

bool DocumentReader::is_separator(std::string_view line) const {
  return options_.document_separator.empty() ? is_blank(line)
                                             : without_return(line) == options_.document_separator;
}

void DocumentReader::append(Document& document, std::string_view line) const {
  if (static_cast<std::int64_t>(document.text.size() + line.size()) > options_.max_document_bytes)
    fail(document.line,
         fmt::format(
             "the document that begins here is longer than {} bytes; separate documents with blank lines or "
             "--document-separator, or raise --max-document-bytes",
             options_.max_document_bytes));
  document.text += line;
}

bool DocumentReader::next_text(Document& document) {
  std::string_view line;
  bool newline = false;  // owed before the next line
  while (lines_.next(line)) {
    if (is_separator(line)) {
      if (document.line != 0) return true;
      continue;
    }
    if (document.line == 0) document.line = lines_.line_number();
    if (newline) append(document, "\n");
    append(document, line);
    newline = true;
  }
  done_ = true;
  return document.line != 0;
}

bool DocumentReader::next_file(Document& document) {
  std::string_view line;
  document.line = 1;
  while (lines_.next(line)) {
    append(document, line);
    if (lines_.ended_with_newline()) append(document, "\n");
  }
  done_ = true;
  return true;
}

bool DocumentReader::next_jsonl(Document& document) {
  std::string_view line;
  do {
    if (!lines_.next(line)) return false;
  } while (is_blank(line));
  document.line = lines_.line_number();
  const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (record.is_discarded()) {
    std::string why;
    try {
      const auto ignored = nlohmann::json::parse(line);
    } catch (const nlohmann::json::parse_error& error) {
      why = fmt::format(" (at byte {} of the line)", error.byte);
    }
    fail(document.line, "not a JSON value" + why + "; JSONL has one object a line");
  }
  if (!record.is_object())
    fail(document.line, fmt::format("a JSON {}, expected an object", record.type_name()));
  const auto text_of = [&](const std::string& field, bool number_too) -> std::string {
    const auto found = record.find(field);
    if (found == record.end()) fail(document.line, fmt::format("field \"{}\" is missing", field));
    if (found->is_string()) return found->get<std::string>();
    if (number_too && found->is_number_integer()) return found->dump();
    fail(document.line, fmt::format("field \"{}\" is a {}, expected a string", field, found->type_name()));
  };
  document.text = text_of(options_.text_field, false);
  if (!options_.label_field.empty()) document.label = text_of(options_.label_field, true);
  if (!options_.domain_field.empty()) document.domain = text_of(options_.domain_field, false);
  return true;
}

bool DocumentReader::next_tsv(Document& document) {
  std::string_view line;
  do {
    if (!lines_.next(line)) return false;
  } while (is_blank(line));
  document.line = lines_.line_number();
  line = without_return(line);
  const std::size_t tab = line.find('\t');
  if (tab == std::string_view::npos) fail(document.line, "no tab: a TSV line is label<TAB>text");
  if (tab == 0) fail(document.line, "the label is missing: a TSV line is label<TAB>text");
  document.label = std::string(line.substr(0, tab));
  document.text = std::string(line.substr(tab + 1));
  return true;
}

}  // namespace moecollab::prepare
