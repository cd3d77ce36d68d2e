// From input files to a token file.
#pragma once

#include <atomic>

#include "moecollab/data/tokenizer.hpp"
#include "options.hpp"

namespace moecollab::prepare {

// The tokenizer that --tokenizer asks for: trained on a sample of the input, or taken from a file.
data::Tokenizer make_tokenizer(const PrepareOptions& options, const std::atomic<bool>& interrupted);

// Tokenises the input and publishes the token file; on any exception nothing of it is left. Prints a summary.
// Memory: a few blocks of text, whatever the size of the input.
void prepare(const PrepareOptions& options, const std::atomic<bool>& interrupted);

}  // namespace moecollab::prepare
