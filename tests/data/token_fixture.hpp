// Small token files, made document by document.
#pragma once

#include <string>
#include <vector>

#include "moecollab/data/token_file.hpp"
#include "support/temporary_directory.hpp"

namespace moecollab::data {

struct TestDocument {
  std::string domain;
  std::string text;
  std::string label;  // empty: none
};

inline void write_token_file(const std::string& path, const std::vector<TestDocument>& documents,
                             double validation_fraction = 0.0, std::uint64_t seed = 1,
                             const std::vector<std::string>& labels = {}) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  TokenFileOptions options;
  options.seed = seed;
  options.validation_fraction = validation_fraction;
  TokenFileWriter writer(path, tokenizer, options);
  if (!labels.empty()) writer.set_labels(labels);
  for (const TestDocument& each : documents) {
    const std::int32_t label = each.label.empty() ? -1 : writer.label(each.label);
    writer.add(writer.domain(each.domain), each.text, tokenizer.encode(each.text), label);
  }
  const SourceFile source{"made by a test", std::string(32, '0')};
  writer.finish({&source, 1});
}

// `count` documents of a domain, of different lengths and all different.
inline std::vector<TestDocument> numbered_documents(const std::string& domain, int count) {
  std::vector<TestDocument> documents;
  for (int i = 0; i < count; ++i)
    documents.push_back(
        {domain, domain + " " + std::to_string(i) + std::string(static_cast<std::size_t>(i * 7 % 23), 'x'),
         ""});
  return documents;
}

}  // namespace moecollab::data
