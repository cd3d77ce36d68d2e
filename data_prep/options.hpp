// The command line of moecollab-prepare.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "documents.hpp"
#include "moecollab/data/token_file.hpp"

namespace moecollab::prepare {

struct PrepareOptions {
  std::vector<InputFile> inputs;
  std::string output;
  std::string tokenizer = "bpe:4096";  // bytes, bpe:V, unigram:V, or where to take one from
  std::int64_t tokenizer_sample_bytes = std::int64_t{16} << 20;
  std::string labels;  // a file of names, one a line; empty: the labels that occur
  ReadOptions read;
  data::TokenFileOptions file;
  int threads = 0;  // 0: all cores
  bool quiet = false;
};

// Nothing: --help was asked for and has been printed. Throws UsageError, or DataError for inputs that are not
// there.
std::optional<PrepareOptions> parse_options(int argc, const char* const* argv);

}  // namespace moecollab::prepare
