#include "moecollab/data/token_file.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <numeric>
#include <optional>

#include "moecollab/core/error.hpp"
#include "moecollab/h5/file.hpp"
#include "part_file.hpp"

namespace moecollab::data {
namespace {

constexpr std::size_t kPartBufferBytes = std::size_t{1} << 20;   // of one part file
constexpr std::size_t kAllBuffersBytes = std::size_t{64} << 20;  // of all of them together
constexpr std::int64_t kCopyRows = std::int64_t{1} << 18;
constexpr std::array kSplits = {Split::train, Split::validation};

std::size_t index_of(Split split) { return static_cast<std::size_t>(split); }

// The three streams of one domain on one side of the split.
struct Part {
  PartFile tokens;
  PartFile lengths;  // i64 tokens of each document
  PartFile labels;   // i32, only when the file is labelled
  DomainCounts counts;

  explicit Part(const std::string& stem)
      : tokens(stem + ".tokens"), lengths(stem + ".lengths"), labels(stem + ".labels") {}
  std::size_t buffered_bytes() const {
    return tokens.buffered_bytes() + lengths.buffered_bytes() + labels.buffered_bytes();
  }
  void flush() {
    tokens.flush();
    lengths.flush();
    labels.flush();
  }
};

// Removes the folder of part files, whatever happens.
struct PartsFolder {
  std::filesystem::path path;

  explicit PartsFolder(std::filesystem::path at) : path(std::move(at)) {
    std::error_code code;
    std::filesystem::remove_all(path, code);  // of a run that was killed
    if (!std::filesystem::create_directory(path, code))
      throw IoError(
          fmt::format("{}: the folder for part files could not be made: {}", path.string(), code.message()));
  }
  PartsFolder(const PartsFolder&) = delete;
  PartsFolder& operator=(const PartsFolder&) = delete;
  ~PartsFolder() {
    std::error_code code;
    std::filesystem::remove_all(path, code);
  }
};

ConstTensorView view_of(const void* data, DType dtype, std::int64_t rows) {
  return {data, dtype, Device::cpu, Shape{rows}};
}

}  // namespace

const char* to_string(Split split) { return split == Split::train ? "train" : "validation"; }

Split split_of(std::string_view text, std::uint64_t seed, double validation_fraction) {
  const std::uint64_t hash = XXH3_64bits_withSeed(text.data(), text.size(), seed);
  return static_cast<double>(hash >> 11) * 0x1.0p-53 < validation_fraction ? Split::validation : Split::train;
}

struct TokenFileWriter::Impl {
  std::string path;
  const Tokenizer& tokenizer;
  TokenFileOptions options;
  DType token_type;
  PartsFolder folder;
  std::vector<std::string> domains;
  std::map<std::string, std::int32_t> domain_ids;
  std::vector<std::string> labels;
  std::map<std::string, std::int32_t> label_ids;
  bool labels_fixed = false;
  std::optional<bool> labelled;
  std::array<std::vector<Part>, 2> parts;  // [split][domain]
  std::size_t buffered_bytes = 0;
  std::vector<std::uint16_t> narrow;  // ids of one document as u16

  Impl(const std::string& at, const Tokenizer& with, const TokenFileOptions& how)
      : path(at),
        tokenizer(with),
        options(how),
        token_type(with.vocab_size() <= 65536 ? DType::u16 : DType::i32),
        folder(at + ".parts") {}

  void append(Part& part, std::span<const std::int32_t> ids, std::int32_t label_id);
  void copy_tokens(h5::File& file, Split split);
  void copy_documents(h5::File& file, Split split, std::span<const std::int32_t> label_order);
  void write_counts(h5::File& file, Split split) const;
  std::vector<std::int32_t> sort_labels();
};

TokenFileWriter::TokenFileWriter(const std::string& path, const Tokenizer& tokenizer,
                                 const TokenFileOptions& options) {
  if (!(options.validation_fraction >= 0.0 && options.validation_fraction < 1.0))
    throw UsageError(
        fmt::format("the validation fraction must lie in [0, 1), it is {}; 0.05 is a good choice",
                    options.validation_fraction));
  impl_ = std::make_unique<Impl>(path, tokenizer, options);
}
TokenFileWriter::TokenFileWriter(TokenFileWriter&&) noexcept = default;
TokenFileWriter& TokenFileWriter::operator=(TokenFileWriter&&) noexcept = default;
TokenFileWriter::~TokenFileWriter() = default;

std::int32_t TokenFileWriter::domain(const std::string& name) {
  if (const auto found = impl_->domain_ids.find(name); found != impl_->domain_ids.end()) return found->second;
  if (name.empty()) throw DataError("a domain needs a name");
  if (static_cast<std::int64_t>(impl_->domains.size()) == kMaxDomains)
    throw DataError(fmt::format("domain \"{}\" would be number {}: a token file holds at most {}", name,
                                kMaxDomains + 1, kMaxDomains));
  const auto id = static_cast<std::int32_t>(impl_->domains.size());
  impl_->domains.push_back(name);
  impl_->domain_ids.emplace(name, id);
  for (const Split split : kSplits)
    impl_->parts[index_of(split)].emplace_back(
        (impl_->folder.path / fmt::format("{}.{}", to_string(split), id)).string());
  return id;
}

std::int32_t TokenFileWriter::label(const std::string& name) {
  if (const auto found = impl_->label_ids.find(name); found != impl_->label_ids.end()) return found->second;
  if (impl_->labels_fixed)
    throw DataError(fmt::format("label \"{}\" is not in the list of labels ({} names, the first is \"{}\")",
                                name, impl_->labels.size(),
                                impl_->labels.empty() ? "" : impl_->labels.front()));
  if (name.empty()) throw DataError("a label needs a name");
  const auto id = static_cast<std::int32_t>(impl_->labels.size());
  impl_->labels.push_back(name);
  impl_->label_ids.emplace(name, id);
  return id;
}

void TokenFileWriter::set_labels(const std::vector<std::string>& names) {
  for (const std::string& name : names) label(name);
  impl_->labels_fixed = true;
}

void TokenFileWriter::Impl::append(Part& part, std::span<const std::int32_t> ids, std::int32_t label_id) {
  const std::int32_t eos = tokenizer.eos_id();
  if (token_type == DType::u16) {
    narrow.assign(ids.begin(), ids.end());
    narrow.push_back(static_cast<std::uint16_t>(eos));
    part.tokens.append(std::span<const std::uint16_t>(narrow));
  } else {
    part.tokens.append(ids);
    part.tokens.append(std::span<const std::int32_t>(&eos, 1));
  }
  const auto length = static_cast<std::int64_t>(ids.size()) + 1;
  part.lengths.append(std::span<const std::int64_t>(&length, 1));
  if (label_id >= 0) part.labels.append(std::span<const std::int32_t>(&label_id, 1));
  part.counts.tokens += length;
}

void TokenFileWriter::add(std::int32_t domain, std::string_view text, std::span<const std::int32_t> ids,
                          std::int32_t label) {
  Impl& impl = *impl_;
  if (!impl.labelled.has_value()) impl.labelled = label >= 0;
  if (*impl.labelled != (label >= 0))
    throw DataError(
        fmt::format("a document {} a label, those before it {}: a token file is labelled as a whole or not",
                    label >= 0 ? "has" : "lacks", label >= 0 ? "lack one" : "have one"));
  const Split split = split_of(text, impl.options.seed, impl.options.validation_fraction);
  Part& part = impl.parts[index_of(split)].at(static_cast<std::size_t>(domain));
  const std::size_t before = part.buffered_bytes();
  impl.append(part, ids, label);
  ++part.counts.documents;
  part.counts.bytes += static_cast<std::int64_t>(text.size());
  impl.buffered_bytes += part.buffered_bytes() - before;
  if (part.buffered_bytes() >= kPartBufferBytes) {
    impl.buffered_bytes -= part.buffered_bytes();
    part.flush();
  }
  if (impl.buffered_bytes >= kAllBuffersBytes) {
    for (auto& side : impl.parts)
      for (Part& each : side) each.flush();
    impl.buffered_bytes = 0;
  }
}

std::span<const std::string> TokenFileWriter::domains() const { return impl_->domains; }
const DomainCounts& TokenFileWriter::counts(Split split, std::int32_t domain) const {
  return impl_->parts[index_of(split)].at(static_cast<std::size_t>(domain)).counts;
}

// Sorts the names and returns the new place of each; the identity when the list was given.
std::vector<std::int32_t> TokenFileWriter::Impl::sort_labels() {
  std::vector<std::int32_t> place(labels.size());
  std::iota(place.begin(), place.end(), 0);
  if (labels_fixed) return place;
  std::int32_t next = 0;
  for (const auto& [name, id] : label_ids) {  // in the order of the names
    labels[static_cast<std::size_t>(next)] = name;
    place[static_cast<std::size_t>(id)] = next++;
  }
  return place;
}

void TokenFileWriter::Impl::copy_tokens(h5::File& file, Split split) {
  const std::string name = fmt::format("{}/tokens", to_string(split));
  std::int64_t total = 0;
  for (const Part& part : parts[index_of(split)]) total += part.counts.tokens;
  file.create_dataset(name, token_type, Shape{total});
  const std::int64_t width = moecollab::size_bytes(token_type);
  std::vector<std::uint8_t> block(static_cast<std::size_t>(kCopyRows * width));
  std::int64_t row = 0;
  for (const Part& part : parts[index_of(split)])
    for (std::int64_t at = 0; at < part.counts.tokens; at += kCopyRows) {
      const std::int64_t rows = std::min(kCopyRows, part.counts.tokens - at);
      part.tokens.read(at * width, std::span(block).first(static_cast<std::size_t>(rows * width)));
      file.write_rows(name, row, view_of(block.data(), token_type, rows));
      row += rows;
    }
}

void TokenFileWriter::Impl::copy_documents(h5::File& file, Split split,
                                           std::span<const std::int32_t> label_order) {
  const std::string group = to_string(split);
  std::int64_t documents = 0;
  for (const Part& part : parts[index_of(split)]) documents += part.counts.documents;
  file.create_dataset(group + "/doc_offsets", DType::i64, Shape{documents + 1});
  file.create_dataset(group + "/doc_domain", DType::i32, Shape{documents});
  if (labelled.value_or(false)) file.create_dataset(group + "/doc_label", DType::i32, Shape{documents});
  std::vector<std::int64_t> offsets(1, 0);
  file.write_rows(group + "/doc_offsets", 0, view_of(offsets.data(), DType::i64, 1));
  std::vector<std::int32_t> values;
  std::int64_t row = 0;
  std::int64_t offset = 0;
  for (std::size_t domain = 0; domain < domains.size(); ++domain) {
    const Part& part = parts[index_of(split)][domain];
    for (std::int64_t at = 0; at < part.counts.documents; at += kCopyRows) {
      const std::int64_t rows = std::min(kCopyRows, part.counts.documents - at);
      offsets.resize(static_cast<std::size_t>(rows));
      values.assign(static_cast<std::size_t>(rows), static_cast<std::int32_t>(domain));
      part.lengths.read(at * 8, {reinterpret_cast<std::uint8_t*>(offsets.data()), offsets.size() * 8});
      for (std::int64_t& length : offsets) length = offset += length;
      file.write_rows(group + "/doc_offsets", row + 1, view_of(offsets.data(), DType::i64, rows));
      file.write_rows(group + "/doc_domain", row, view_of(values.data(), DType::i32, rows));
      if (labelled.value_or(false)) {
        part.labels.read(at * 4, {reinterpret_cast<std::uint8_t*>(values.data()), values.size() * 4});
        for (std::int32_t& value : values) value = label_order[static_cast<std::size_t>(value)];
        file.write_rows(group + "/doc_label", row, view_of(values.data(), DType::i32, rows));
      }
      row += rows;
    }
  }
}

void TokenFileWriter::Impl::write_counts(h5::File& file, Split split) const {
  const std::string group = to_string(split);
  DomainCounts total;
  for (std::size_t domain = 0; domain < domains.size(); ++domain) {
    const DomainCounts& counts = parts[index_of(split)][domain].counts;
    file.set_attribute(group, domains[domain] + ".documents", counts.documents);
    file.set_attribute(group, domains[domain] + ".tokens", counts.tokens);
    file.set_attribute(group, domains[domain] + ".bytes", counts.bytes);
    total.documents += counts.documents;
    total.tokens += counts.tokens;
    total.bytes += counts.bytes;
  }
  file.set_attribute(group, "documents", total.documents);
  file.set_attribute(group, "tokens", total.tokens);
  file.set_attribute(group, "bytes", total.bytes);
}

void TokenFileWriter::finish(std::span<const SourceFile> sources) {
  Impl& impl = *impl_;
  if (!impl.labelled.has_value()) throw DataError(impl.path + ": there is no document to write");
  for (auto& side : impl.parts)
    for (Part& part : side) part.flush();
  const std::vector<std::int32_t> label_order = impl.sort_labels();

  h5::File file = h5::File::create_new(impl.path);
  std::vector<std::string> paths;
  std::vector<std::string> hashes;
  std::string all;
  for (const SourceFile& source : sources) {
    paths.push_back(source.path);
    hashes.push_back(source.xxh3_128);
    all += source.xxh3_128 + "\n";
  }
  const XXH128_hash_t sources_hash = XXH3_128bits(all.data(), all.size());
  file.set_attribute("", "format", std::string(kTokenFileFormat));
  file.set_attribute("", "format_version", kTokenFileVersion);
  file.set_attribute("", "tokenizer_hash", impl.tokenizer.hash());
  file.set_attribute("", "vocab_size", impl.tokenizer.vocab_size());
  file.set_attribute("", "seed", static_cast<std::int64_t>(impl.options.seed));
  file.set_attribute("", "validation_fraction", impl.options.validation_fraction);
  file.set_attribute("", "sources_hash",
                     fmt::format("{:016x}{:016x}", sources_hash.high64, sources_hash.low64));
  file.write_strings("domains", impl.domains);
  file.write_strings("labels", impl.labels);
  file.write_strings("sources/path", paths);
  file.write_strings("sources/xxh3_128", hashes);
  const std::string& model = impl.tokenizer.model();
  file.write("tokenizer", view_of(model.data(), DType::u8, static_cast<std::int64_t>(model.size())));
  file.set_attribute("tokenizer", "kind", std::string(to_string(impl.tokenizer.kind())));
  file.write("token_bytes",
             view_of(impl.tokenizer.token_bytes().data(), DType::i32, impl.tokenizer.vocab_size()));
  for (const Split split : kSplits) {
    file.create_group(to_string(split));
    impl.copy_tokens(file, split);
    impl.copy_documents(file, split, label_order);
    impl.write_counts(file, split);
  }
  file.commit();
}

}  // namespace moecollab::data
