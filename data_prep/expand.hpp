// "domain=path[:format]" to files.
#pragma once

#include <string>
#include <vector>

#include "documents.hpp"

namespace moecollab::prepare {

// A path may be a file, a folder (its files, also of folders below, in the order of their names) or a pattern
// with
// * ? [ ]. Without a format the ending decides: .jsonl .ndjson .json, .tsv, else text. The domain may be left
// out only if `domain_from_records`. Throws UsageError: not of this form; DataError: nothing there.
std::vector<InputFile> expand_input(const std::string& argument, bool domain_from_records);

}  // namespace moecollab::prepare
