#include "options.hpp"

#include <fmt/format.h>

#include <boost/program_options.hpp>
#include <filesystem>
#include <iostream>

#include "expand.hpp"
#include "moecollab/core/error.hpp"

namespace moecollab::prepare {
namespace {

constexpr const char* kIntroduction =
    R"(moecollab-prepare: text to a token file (HDF5) that moecollab trains on

usage: moecollab-prepare --input DOMAIN=PATH[:FORMAT] ... --output FILE [options]

PATH is a file, a folder, or a quoted pattern. FORMAT is one of
  text    documents separated by blank lines (or by --document-separator)
  file    the file is one document
  jsonl   one JSON object a line
  tsv     a label, a tab, and text on each line
and follows from the ending .jsonl, .ndjson, .json or .tsv where it is left out; else it is text.

)";
constexpr const char* kExamples = R"(
examples:
  an anchor's data, with a tokenizer of its own
    moecollab-prepare --input general=dictionary.jsonl --input novels=books.txt --output anchor.h5
  a contributor's data, in the anchor's tokens
    moecollab-prepare --input python='src/*.py:file' --tokenizer anchor.h5 --output python.h5
  labelled text for a classifier
    moecollab-prepare --input reviews=reviews.tsv --labels names.txt --tokenizer bytes --output reviews.h5

exit codes: 0 done, 64 usage, 65 bad input, 70 a bug, 75 the machine failed (disk full, interrupted: run again)
)";

}  // namespace

std::optional<PrepareOptions> parse_options(int argc, const char* const* argv) {
  namespace po = boost::program_options;
  PrepareOptions options;
  std::vector<std::string> inputs;
  po::options_description all("options", 100);
  auto add = all.add_options();
  add("help,h", "print this text");
  add("input,i", po::value(&inputs)->composing()->value_name("DOMAIN=PATH[:FORMAT]"),
      "text of a domain; repeatable");
  add("output,o", po::value(&options.output)->value_name("FILE"), "the token file to write");
  add("tokenizer,t", po::value(&options.tokenizer)->default_value(options.tokenizer)->value_name("WHICH"),
      "bytes, bpe:V or unigram:V (trained on the input, V tokens), or where to take one from: a token file, "
      "a "
      "checkpoint or run folder, a tokenizer file, or a SentencePiece model");
  add("tokenizer-sample-bytes",
      po::value(&options.tokenizer_sample_bytes)
          ->default_value(options.tokenizer_sample_bytes)
          ->value_name("N"),
      "text that a tokenizer is trained on, drawn evenly from the training side");
  add("validation-fraction",
      po::value(&options.file.validation_fraction)
          ->default_value(options.file.validation_fraction, "0.05")
          ->value_name("F"),
      "share of the documents set aside");
  add("seed", po::value(&options.file.seed)->default_value(options.file.seed)->value_name("N"),
      "decides which documents are set aside");
  add("text-field",
      po::value(&options.read.text_field)->default_value(options.read.text_field)->value_name("NAME"),
      "JSONL: where the text is");
  add("label-field", po::value(&options.read.label_field)->value_name("NAME"),
      "JSONL: where the label is, a string or a whole number");
  add("domain-field", po::value(&options.read.domain_field)->value_name("NAME"),
      "JSONL: where the domain is; --input then takes a PATH alone");
  add("labels", po::value(&options.labels)->value_name("FILE"),
      "the label names, one a line, in their order; without it: those that occur, sorted");
  add("document-separator", po::value(&options.read.document_separator)->value_name("LINE"),
      "text: this line separates documents, not blank lines");
  add("max-document-bytes",
      po::value(&options.read.max_document_bytes)
          ->default_value(options.read.max_document_bytes)
          ->value_name("N"),
      "longer documents are an error; bounds the memory");
  add("threads", po::value(&options.threads)->default_value(options.threads)->value_name("N"),
      "0: all cores");
  add("quiet,q", po::bool_switch(&options.quiet), "no progress and no summary");
  po::variables_map given;
  try {
    po::store(po::command_line_parser(argc, argv)
                  .options(all)
                  .positional(po::positional_options_description().add("input", -1))
                  .run(),
              given);
    po::notify(given);
  } catch (const po::error& error) {
    throw UsageError(fmt::format("{}; moecollab-prepare --help lists the options", error.what()));
  }
  if (given.count("help") != 0 || argc == 1) {
    std::cout << kIntroduction << all << kExamples;
    return std::nullopt;
  }
  if (inputs.empty()) throw UsageError("--input is missing, as in --input novels=books.txt");
  if (options.output.empty()) throw UsageError("--output is missing, as in --output novels.h5");
  if (std::filesystem::is_directory(options.output))
    throw UsageError(fmt::format("--output {}: that is a folder; name a file", options.output));
  if (options.read.max_document_bytes < 1 || options.tokenizer_sample_bytes < 1 || options.threads < 0)
    throw UsageError(
        "--max-document-bytes and --tokenizer-sample-bytes must be at least 1, --threads at least 0");
  for (const std::string& input : inputs)
    for (InputFile& file : expand_input(input, !options.read.domain_field.empty()))
      options.inputs.push_back(std::move(file));
  for (const InputFile& file : options.inputs)
    if (file.domain.empty() && file.format != Format::jsonl)
      throw UsageError(fmt::format("{}: only JSONL names the domain of each document; give --input domain={}",
                                   file.path, file.path));
  return options;
}

}  // namespace moecollab::prepare
