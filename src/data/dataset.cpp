#include "moecollab/data/dataset.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>

#include "moecollab/core/error.hpp"
#include "moecollab/h5/file.hpp"
#include "raw_column.hpp"

namespace moecollab::data {
namespace {

constexpr std::int64_t kScanRows = 1 << 16;
// Every so many document offsets one is kept in memory, so that finding a document costs one read.
constexpr std::int64_t kOffsetStride = 512;
constexpr std::array kSplits = {Split::train, Split::validation};

struct SplitIndex {
  RawColumn tokens;
  RawColumn offsets;
  RawColumn labels;
  std::int64_t documents = 0;
  std::vector<std::int64_t> sparse_offsets;  // doc_offsets[i * kOffsetStride]
  std::vector<Range> domain_documents;
  std::vector<Range> domain_tokens;
};

RawColumn open_column(const h5::File& h5, const std::shared_ptr<const ReadFile>& file,
                      const std::string& name, std::initializer_list<DType> types) {
  const h5::DatasetInfo info = h5.info(name);
  if (info.shape.rank() != 1 || std::ranges::find(types, info.dtype) == types.end())
    throw DataError(fmt::format("{}: {} is {} {}, expected one axis of {}", file->path(), name,
                                to_string(info.dtype), to_string(info.shape), to_string(*types.begin())));
  return {file, name, info.dtype, info.shape[0], info.offset_bytes};
}

}  // namespace

struct Dataset::State {
  std::string path;
  std::shared_ptr<const ReadFile> file;
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<std::string> domains;
  std::vector<std::string> labels;
  std::string content_hash;
  std::array<SplitIndex, 2> splits;

  const SplitIndex& of(Split split) const { return splits[static_cast<std::size_t>(split)]; }
  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) const {
    throw DataError(fmt::format("{}: {}", path, fmt::format(text, std::forward<Args>(args)...)));
  }
  void read_frame(const h5::File& h5);
  void read_split(const h5::File& h5, Split split);
  void scan_offsets(SplitIndex& index) const;
  void scan_domains(SplitIndex& index, const RawColumn& column) const;
  void scan_labels(const SplitIndex& index) const;
};

void Dataset::State::read_frame(const h5::File& h5) {
  if (!h5.has_attribute("", "format") || h5.attribute_string("", "format") != kTokenFileFormat)
    fail("not a token file: the attribute format is not \"{}\"; moecollab-prepare makes one from text",
         kTokenFileFormat);
  const std::int64_t version = h5.attribute_i64("", "format_version");
  if (version != kTokenFileVersion)
    fail("format_version {}; this program reads {}", version, kTokenFileVersion);
  domains = h5.read_strings("domains");
  labels = h5.read_strings("labels");
  if (domains.empty() || static_cast<std::int64_t>(domains.size()) > kMaxDomains)
    fail("/domains has {} names, expected 1 to {}", domains.size(), kMaxDomains);

  const Tensor model = h5.read("tokenizer");
  if (model.dtype() != DType::u8) fail("/tokenizer is {}, expected u8", to_string(model.dtype()));
  const auto* bytes = reinterpret_cast<const char*>(model.view().as<std::uint8_t>());
  tokenizer = std::make_unique<Tokenizer>(
      Tokenizer::from_parts(h5.attribute_string("tokenizer", "kind"),
                            std::string(bytes, static_cast<std::size_t>(model.shape().numel())), path));
  const std::string hash = h5.attribute_string("", "tokenizer_hash");
  if (hash != tokenizer->hash())
    fail("tokenizer_hash is {}, but /tokenizer hashes to {}", hash, tokenizer->hash());
  const Tensor table = h5.read("token_bytes");
  const auto own = tokenizer->token_bytes();
  if (table.dtype() != DType::i32 || table.shape().numel() != tokenizer->vocab_size() ||
      !std::equal(own.begin(), own.end(), table.view().as<std::int32_t>()))
    fail("/token_bytes does not belong to /tokenizer (V = {})", tokenizer->vocab_size());
  const std::string identity =
      fmt::format("{} {} {} {}", h5.attribute_string("", "sources_hash"), hash, h5.attribute_i64("", "seed"),
                  h5.attribute_f64("", "validation_fraction"));
  const XXH128_hash_t digest = XXH3_128bits(identity.data(), identity.size());
  content_hash = fmt::format("{:016x}{:016x}", digest.high64, digest.low64);
}

void Dataset::State::read_split(const h5::File& h5, Split split) {
  SplitIndex& index = splits[static_cast<std::size_t>(split)];
  const std::string group = to_string(split);
  index.tokens = open_column(h5, file, group + "/tokens", {DType::u16, DType::i32});
  index.offsets = open_column(h5, file, group + "/doc_offsets", {DType::i64});
  const RawColumn domain = open_column(h5, file, group + "/doc_domain", {DType::i32});
  index.documents = domain.rows;
  if (index.offsets.rows != index.documents + 1)
    fail("{} has {} rows for {} documents, expected one more than documents", index.offsets.name,
         index.offsets.rows, index.documents);
  scan_offsets(index);
  scan_domains(index, domain);
  if (!labels.empty()) {
    index.labels = open_column(h5, file, group + "/doc_label", {DType::i32});
    if (index.labels.rows != index.documents)
      fail("{} has {} rows for {} documents", index.labels.name, index.labels.rows, index.documents);
    scan_labels(index);
  }
  if (const std::int64_t counted = h5.attribute_i64(group, "tokens"); counted != index.tokens.rows)
    fail("attribute tokens of /{} says {}, {} holds {}", group, counted, index.tokens.name,
         index.tokens.rows);
}

void Dataset::State::scan_offsets(SplitIndex& index) const {
  std::vector<std::int64_t> block;
  std::int64_t last = -1;
  for (std::int64_t begin = 0; begin < index.offsets.rows; begin += kScanRows) {
    block.resize(static_cast<std::size_t>(std::min(kScanRows, index.offsets.rows - begin)));
    index.offsets.read(begin, std::span(block));
    for (std::size_t i = 0; i < block.size(); ++i) {
      const std::int64_t row = begin + static_cast<std::int64_t>(i);
      if (block[i] <= last || (row == 0 && block[i] != 0) || block[i] > index.tokens.rows)
        fail("{}[{}] is {} after {}: offsets start at 0, rise, and end at {}", index.offsets.name, row,
             block[i], last, index.tokens.rows);
      last = block[i];
      if (row % kOffsetStride == 0) index.sparse_offsets.push_back(last);
    }
  }
  if (last != index.tokens.rows)
    fail("{} ends at {}, {} has {} tokens: some belong to no document", index.offsets.name, last,
         index.tokens.name, index.tokens.rows);
}

void Dataset::State::scan_domains(SplitIndex& index, const RawColumn& column) const {
  std::vector<std::int64_t> first(domains.size() + 1, 0);  // documents before each domain
  std::vector<std::int32_t> block;
  std::int32_t last = 0;
  for (std::int64_t begin = 0; begin < column.rows; begin += kScanRows) {
    block.resize(static_cast<std::size_t>(std::min(kScanRows, column.rows - begin)));
    column.read(begin, std::span(block));
    for (std::size_t i = 0; i < block.size(); ++i) {
      if (block[i] < last || block[i] >= static_cast<std::int32_t>(domains.size()))
        fail("{}[{}] is {} after {}: it never falls and stays below the {} domains", column.name,
             begin + static_cast<std::int64_t>(i), block[i], last, domains.size());
      last = block[i];
      ++first[static_cast<std::size_t>(last) + 1];
    }
  }
  for (std::size_t d = 0; d < domains.size(); ++d) {
    first[d + 1] += first[d];
    index.domain_documents.push_back({first[d], first[d + 1]});
    Range tokens;
    index.offsets.read(first[d], std::span(&tokens.begin, 1));
    index.offsets.read(first[d + 1], std::span(&tokens.end, 1));
    index.domain_tokens.push_back(tokens);
  }
}

void Dataset::State::scan_labels(const SplitIndex& index) const {
  std::vector<std::int32_t> block;
  for (std::int64_t begin = 0; begin < index.labels.rows; begin += kScanRows) {
    block.resize(static_cast<std::size_t>(std::min(kScanRows, index.labels.rows - begin)));
    index.labels.read(begin, std::span(block));
    for (std::size_t i = 0; i < block.size(); ++i)
      if (block[i] < 0 || block[i] >= static_cast<std::int32_t>(labels.size()))
        fail("{}[{}] is {}, outside the {} labels", index.labels.name, begin + static_cast<std::int64_t>(i),
             block[i], labels.size());
  }
}

Dataset::Dataset(std::unique_ptr<State> state) : state_(std::move(state)) {}
Dataset::Dataset(Dataset&&) noexcept = default;
Dataset& Dataset::operator=(Dataset&&) noexcept = default;
Dataset::~Dataset() = default;

Dataset Dataset::open(const std::string& path) {
  auto state = std::make_unique<State>();
  state->path = path;
  state->file = std::make_shared<const ReadFile>(path);
  const h5::File h5 = h5::File::open_read(path);
  state->read_frame(h5);
  for (const Split split : kSplits) state->read_split(h5, split);
  return Dataset(std::move(state));
}

const std::string& Dataset::path() const { return state_->path; }
const Tokenizer& Dataset::tokenizer() const { return *state_->tokenizer; }
std::int64_t Dataset::vocab_size() const { return state_->tokenizer->vocab_size(); }
std::span<const std::string> Dataset::domains() const { return state_->domains; }
std::span<const std::string> Dataset::labels() const { return state_->labels; }
std::string Dataset::content_hash() const { return state_->content_hash; }
std::int64_t Dataset::num_tokens(Split split) const { return state_->of(split).tokens.rows; }
std::int64_t Dataset::num_documents(Split split) const { return state_->of(split).documents; }

void Dataset::check_tokenizer(const std::string& hash) const {
  if (hash != tokenizer().hash())
    state_->fail(
        "its tokens are of tokenizer {} ({}, V = {}), the model's is {}: prepare the text again with "
        "--tokenizer set "
        "to the model's checkpoint",
        tokenizer().hash(), to_string(tokenizer().kind()), vocab_size(), hash);
}

Range Dataset::domain_tokens(Split split, std::int32_t domain) const {
  return state_->of(split).domain_tokens.at(static_cast<std::size_t>(domain));
}
Range Dataset::domain_documents(Split split, std::int32_t domain) const {
  return state_->of(split).domain_documents.at(static_cast<std::size_t>(domain));
}

void Dataset::read_tokens(Split split, std::int64_t begin, std::span<std::int32_t> out) const {
  const RawColumn& column = state_->of(split).tokens;
  if (column.dtype == DType::u16) {
    std::array<std::uint16_t, 4096> block;
    for (std::size_t done = 0; done < out.size();) {
      const std::size_t rows = std::min(block.size(), out.size() - done);
      column.read(begin + static_cast<std::int64_t>(done), std::span(block).first(rows));
      std::copy_n(block.begin(), rows, out.begin() + static_cast<std::ptrdiff_t>(done));
      done += rows;
    }
  } else {
    column.read(begin, out);
  }
  const std::int64_t vocab = vocab_size();
  for (std::size_t i = 0; i < out.size(); ++i)
    if (out[i] < 0 || out[i] >= vocab)
      state_->fail("{}[{}] is {}, outside the vocabulary [0, {})", column.name,
                   begin + static_cast<std::int64_t>(i), out[i], vocab);
}

std::int64_t Dataset::document_of(Split split, std::int64_t token) const {
  const SplitIndex& index = state_->of(split);
  if (token < 0 || token >= index.tokens.rows)
    state_->fail("token {} of {} was asked for, it has {}", token, index.tokens.name, index.tokens.rows);
  const auto after = std::ranges::upper_bound(index.sparse_offsets, token);
  const std::int64_t first = (after - index.sparse_offsets.begin() - 1) * kOffsetStride;
  std::array<std::int64_t, kOffsetStride> block;
  const auto offsets =
      std::span(block).first(static_cast<std::size_t>(std::min(kOffsetStride, index.offsets.rows - first)));
  index.offsets.read(first, offsets);
  return first + (std::ranges::upper_bound(offsets, token) - offsets.begin()) - 1;
}

void Dataset::read_document_ends(Split split, std::int64_t first, std::span<std::int64_t> out) const {
  state_->of(split).offsets.read(first + 1, out);
}

Range Dataset::document_tokens(Split split, std::int64_t document) const {
  std::array<std::int64_t, 2> ends;
  state_->of(split).offsets.read(document, std::span<std::int64_t>(ends));
  return {ends[0], ends[1]};
}

std::int32_t Dataset::document_label(Split split, std::int64_t document) const {
  if (state_->labels.empty()) return -1;
  std::int32_t label = -1;
  state_->of(split).labels.read(document, std::span(&label, 1));
  return label;
}

}  // namespace moecollab::data
