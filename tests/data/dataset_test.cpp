#include "moecollab/data/dataset.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <numeric>

#include "data/token_fixture.hpp"
#include "moecollab/core/error.hpp"
#include "moecollab/h5/file.hpp"

namespace moecollab::data {
namespace {

using test::TemporaryDirectory;

std::vector<std::int32_t> byte_counts() {
  const Tokenizer tokenizer = Tokenizer::bytes();
  return {tokenizer.token_bytes().begin(), tokenizer.token_bytes().end()};
}

// The content of a small valid file, of which a test damages one part before it is written.
struct Parts {
  std::string format = kTokenFileFormat;
  std::int64_t version = kTokenFileVersion;
  std::string hash = Tokenizer::bytes().hash();
  std::string kind = "bytes";
  std::vector<std::string> domains = {"a", "b"};
  std::vector<std::string> labels;
  std::vector<std::int32_t> tokens = {104, 105, 257, 97, 257, 98, 98, 257};
  std::vector<std::int64_t> offsets = {0, 3, 5, 8};
  std::vector<std::int32_t> domain = {0, 0, 1};
  std::vector<std::int32_t> label;
  std::vector<std::int32_t> token_bytes = byte_counts();
  std::int64_t counted = 8;
};

template <class T>
void put(h5::File& file, const std::string& name, const std::vector<T>& values) {
  file.write(name, ConstTensorView(values.data(), DTypeOf<T>::value, Device::cpu,
                                   Shape{static_cast<std::int64_t>(values.size())}));
}

void write(const std::string& path, const Parts& parts) {
  h5::File file = h5::File::create_new(path);
  file.set_attribute("", "format", parts.format);
  file.set_attribute("", "format_version", parts.version);
  file.set_attribute("", "tokenizer_hash", parts.hash);
  file.set_attribute("", "seed", std::int64_t{1});
  file.set_attribute("", "validation_fraction", 0.0);
  file.set_attribute("", "sources_hash", std::string("0"));
  file.write_strings("domains", parts.domains);
  file.write_strings("labels", parts.labels);
  put(file, "tokenizer", std::vector<std::uint8_t>{});
  file.set_attribute("tokenizer", "kind", parts.kind);
  put(file, "token_bytes", parts.token_bytes);
  for (const std::string group : {"train", "validation"}) {
    const bool train = group == "train";
    file.create_group(group);
    put(file, group + "/tokens", train ? parts.tokens : std::vector<std::int32_t>{});
    put(file, group + "/doc_offsets", train ? parts.offsets : std::vector<std::int64_t>{0});
    put(file, group + "/doc_domain", train ? parts.domain : std::vector<std::int32_t>{});
    if (!parts.labels.empty())
      put(file, group + "/doc_label", train ? parts.label : std::vector<std::int32_t>{});
    file.set_attribute(group, "tokens", train ? parts.counted : std::int64_t{0});
  }
  file.commit();
}

TEST(Dataset, ReadsI32Tokens) {
  const TemporaryDirectory folder;
  write(folder / "t.h5", Parts{});
  const Dataset dataset = Dataset::open(folder / "t.h5");
  EXPECT_EQ(dataset.domain_tokens(Split::train, 0), (Range{0, 5}));
  EXPECT_EQ(dataset.domain_tokens(Split::train, 1), (Range{5, 8}));
  EXPECT_EQ(dataset.domain_documents(Split::train, 1), (Range{2, 3}));
  std::vector<std::int32_t> tokens(8);
  dataset.read_tokens(Split::train, 0, tokens);
  EXPECT_EQ(tokens, Parts{}.tokens);
  EXPECT_EQ(dataset.document_label(Split::train, 0), -1);
}

struct Damage {
  const char* name;
  std::function<void(Parts&)> apply;
  const char* named;  // what the message must contain
};

TEST(Dataset, RefusesADamagedFileAndSaysWhere) {
  const std::vector<Damage> all = {
      {"format", [](Parts& p) { p.format = "other"; }, "format"},
      {"version", [](Parts& p) { p.version = 2; }, "format_version 2"},
      {"hash", [](Parts& p) { p.hash[0] ^= 1; }, "tokenizer_hash"},
      {"kind", [](Parts& p) { p.kind = "words"; }, "words"},
      {"token_bytes", [](Parts& p) { p.token_bytes[7] = 2; }, "/token_bytes"},
      {"token_bytes short", [](Parts& p) { p.token_bytes.pop_back(); }, "/token_bytes"},
      {"no domain", [](Parts& p) { p.domains.clear(); }, "/domains"},
      {"offsets fall",
       [](Parts& p) {
         p.offsets = {0, 5, 3, 8};
       },
       "train/doc_offsets[2] is 3"},
      {"offsets stay",
       [](Parts& p) {
         p.offsets = {0, 3, 3, 8};
       },
       "train/doc_offsets[2] is 3"},
      {"offsets begin late",
       [](Parts& p) {
         p.offsets = {1, 3, 5, 8};
       },
       "train/doc_offsets[0] is 1"},
      {"offsets end early",
       [](Parts& p) {
         p.offsets = {0, 3, 5, 7};
       },
       "train/doc_offsets ends at 7"},
      {"offsets end late",
       [](Parts& p) {
         p.offsets = {0, 3, 5, 9};
       },
       "train/doc_offsets[3] is 9"},
      {"offsets too few",
       [](Parts& p) {
         p.offsets = {0, 3, 8};
       },
       "train/doc_offsets has 3 rows"},
      {"domain unknown",
       [](Parts& p) {
         p.domain = {0, 0, 2};
       },
       "train/doc_domain[2] is 2"},
      {"domain negative",
       [](Parts& p) {
         p.domain = {-1, 0, 1};
       },
       "train/doc_domain[0] is -1"},
      {"domains mixed",
       [](Parts& p) {
         p.domain = {0, 1, 0};
       },
       "train/doc_domain[2] is 0"},
      {"label unknown",
       [](Parts& p) {
         p.labels = {"x"};
         p.label = {0, 1, 0};
       },
       "train/doc_label[1] is 1"},
      {"labels too few",
       [](Parts& p) {
         p.labels = {"x"};
         p.label = {0, 0};
       },
       "train/doc_label has 2 rows"},
      {"count", [](Parts& p) { p.counted = 9; }, "attribute tokens of /train says 9"},
  };
  const TemporaryDirectory folder;
  for (const Damage& damage : all) {
    SCOPED_TRACE(damage.name);
    Parts parts;
    damage.apply(parts);
    const std::string path = folder / "t.h5";
    write(path, parts);
    try {
      Dataset::open(path);
      ADD_FAILURE() << "was opened";
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(damage.named), std::string::npos) << error.what();
    }
  }
}

TEST(Dataset, FindsATokenOutsideTheVocabularyWhenItIsRead) {
  const TemporaryDirectory folder;
  for (const std::int32_t bad : {259, -1}) {
    Parts parts;
    parts.tokens[6] = bad;
    write(folder / "t.h5", parts);
    const Dataset dataset = Dataset::open(folder / "t.h5");
    std::vector<std::int32_t> tokens(3);
    dataset.read_tokens(Split::train, 2, tokens);
    try {
      dataset.read_tokens(Split::train, 4, tokens);
      ADD_FAILURE() << "was read";
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find("train/tokens[6] is " + std::to_string(bad)),
                std::string::npos)
          << error.what();
    }
  }
}

TEST(Dataset, RefusesATruncatedFileAtAnyLength) {
  const TemporaryDirectory folder;
  write_token_file(folder / "t.h5", numbered_documents("a", 200), 0.1);
  const auto size = std::filesystem::file_size(folder / "t.h5");
  for (std::uintmax_t left = 0; left < size; left += std::max<std::uintmax_t>(1, size / 37)) {
    std::filesystem::copy_file(folder / "t.h5", folder / "cut.h5",
                               std::filesystem::copy_options::overwrite_existing);
    std::filesystem::resize_file(folder / "cut.h5", left);
    EXPECT_THROW(Dataset::open(folder / "cut.h5"), DataError) << left << " of " << size;
  }
  EXPECT_THROW(Dataset::open(folder / "none.h5"), DataError);
}

TEST(Dataset, RefusesAForeignTokenizer) {
  const TemporaryDirectory folder;
  write_token_file(folder / "t.h5", {{"a", "text", ""}});
  const Dataset dataset = Dataset::open(folder / "t.h5");
  dataset.check_tokenizer(Tokenizer::bytes().hash());
  try {
    dataset.check_tokenizer(std::string(32, 'f'));
    ADD_FAILURE() << "was accepted";
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find(std::string(32, 'f')), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("--tokenizer"), std::string::npos);
  }
}

TEST(Dataset, FindsTheDocumentOfEveryToken) {
  const TemporaryDirectory folder;
  write_token_file(folder / "t.h5", numbered_documents("a", 1500));  // more than two strides of offsets
  const Dataset dataset = Dataset::open(folder / "t.h5");
  std::int64_t token = 0;
  for (std::int64_t document = 0; document < dataset.num_documents(Split::train); ++document) {
    const Range range = dataset.document_tokens(Split::train, document);
    ASSERT_EQ(range.begin, token);
    ASSERT_EQ(dataset.document_of(Split::train, range.begin), document);
    ASSERT_EQ(dataset.document_of(Split::train, range.end - 1), document);
    token = range.end;
  }
  EXPECT_EQ(token, dataset.num_tokens(Split::train));
  EXPECT_THROW(dataset.document_of(Split::train, token), DataError);
  std::vector<std::int32_t> tokens(2);
  EXPECT_THROW(dataset.read_tokens(Split::train, token - 1, tokens), DataError);
  EXPECT_THROW(dataset.read_tokens(Split::train, -1, tokens), DataError);
}

TEST(Dataset, KnowsWhetherItReadsTheSame) {
  const TemporaryDirectory folder;
  write_token_file(folder / "1.h5", numbered_documents("a", 20), 0.1);
  write_token_file(folder / "2.h5", numbered_documents("a", 20), 0.2);
  EXPECT_NE(Dataset::open(folder / "1.h5").content_hash(), Dataset::open(folder / "2.h5").content_hash());
}

}  // namespace
}  // namespace moecollab::data
