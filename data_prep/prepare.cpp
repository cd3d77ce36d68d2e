#include "prepare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "moecollab/core/error.hpp"
#include "moecollab/core/random.hpp"
#include "moecollab/data/dataset.hpp"
#include "moecollab/h5/file.hpp"
#include "progress.hpp"
#include "tokenizer_training.hpp"

namespace moecollab::prepare {
namespace {

// Documents are encoded in blocks of about this much text, each document by one thread.
constexpr std::size_t kBlockBytes = std::size_t{4} << 20;
constexpr std::size_t kMaxSentenceBytes = 4096;  // longer lines are cut for training
constexpr std::string_view kHdf5Signature = "\x89HDF\r\n\x1a\n";

struct Work {
  const PrepareOptions& options;
  const std::atomic<bool>& interrupted;
  std::int64_t total_bytes = 0;

  Work(const PrepareOptions& with, const std::atomic<bool>& stop) : options(with), interrupted(stop) {
    std::error_code code;
    for (const InputFile& input : options.inputs) {
      const auto size = std::filesystem::file_size(input.path, code);
      if (!code) total_bytes += static_cast<std::int64_t>(size);
    }
  }
  void check_interrupted() const {
    if (interrupted) throw IoError("interrupted; nothing was written");
  }
};

// Adds the lines of `text` to the sample, each with the same probability.
class Sample {
 public:
  Sample(std::uint64_t seed, std::int64_t wanted_bytes, std::int64_t total_bytes)
      : seed_(seed),
        room_bytes_(wanted_bytes + wanted_bytes / 4),
        share_(static_cast<double>(wanted_bytes) /
               static_cast<double>(std::max<std::int64_t>(1, total_bytes))) {}

  void add(std::string_view text) {
    while (!text.empty()) {
      std::size_t end = std::min(text.find('\n'), text.size());
      if (end > kMaxSentenceBytes) {
        end = kMaxSentenceBytes;
        while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;
      }
      if (end > 0 && static_cast<std::int64_t>(end) <= room_bytes_ &&
          random_uniform(seed_, stream_of("prepare.sample"), line_++) < share_) {
        sentences_.emplace_back(text.substr(0, end));
        room_bytes_ -= static_cast<std::int64_t>(end);
      }
      text.remove_prefix(end);
      if (text.starts_with('\n')) text.remove_prefix(1);
    }
  }
  std::vector<std::string> take() { return std::move(sentences_); }

 private:
  std::uint64_t seed_;
  std::int64_t room_bytes_;
  double share_;
  std::uint64_t line_ = 0;
  std::vector<std::string> sentences_;
};

data::Tokenizer train(const Work& work, ModelType type, std::int64_t vocab_size) {
  const PrepareOptions& options = work.options;
  Sample sample(options.file.seed, options.tokenizer_sample_bytes, work.total_bytes);
  {
    Progress progress("sampling  ", work.total_bytes, options.quiet);
    std::int64_t before = 0;
    for (const InputFile& input : options.inputs) {
      DocumentReader reader(input, options.read);
      Document document;
      while (reader.next(document)) {
        if (data::split_of(document.text, options.file.seed, options.file.validation_fraction) ==
            data::Split::train)
          sample.add(document.text);
        progress.update(before + reader.bytes_read());
        work.check_interrupted();
      }
      before += reader.bytes_read();
    }
  }
  if (!options.quiet) fmt::print(stderr, "training a tokenizer of {} tokens\n", vocab_size);
  data::Tokenizer tokenizer = train_tokenizer(type, vocab_size, sample.take());
  if (tokenizer.vocab_size() < vocab_size && !options.quiet)
    fmt::print(stderr, "the text is short: the tokenizer has {} tokens, not {}\n", tokenizer.vocab_size(),
               vocab_size);
  return tokenizer;
}

std::string read_whole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) throw DataError(path + ": the tokenizer could not be read");
  return content;
}

// A checkpoint as it is, or the newest one of a run directory: its manifest is written last, so that it is
// whole.
std::string checkpoint_in(const std::string& folder) {
  if (std::filesystem::exists(folder + "/tokenizer.bin")) return folder;
  std::string newest;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(folder + "/checkpoints", none)) {
    const std::string name = entry.path().filename();  // step-00000120
    if (name.find_first_not_of("0123456789", 5) != std::string::npos || !name.starts_with("step-") ||
        !std::filesystem::exists(entry.path() / "manifest.json"))
      continue;
    newest = std::max(newest, entry.path().string());
  }
  return newest.empty() ? folder : newest;
}

data::Tokenizer load_tokenizer(const std::string& from) {
  std::string path = from;
  if (std::filesystem::is_directory(path)) path = checkpoint_in(path) + "/tokenizer.bin";
  if (!std::filesystem::is_regular_file(path))
    throw DataError(
        fmt::format("--tokenizer {}: there is no file {}; use bytes, bpe:V, unigram:V, or the path of a "
                    "token file, checkpoint, run, tokenizer or SentencePiece model",
                    from, path));
  std::ifstream file(path, std::ios::binary);
  std::string head(8, '\0');
  file.read(head.data(), 8);
  if (head == kHdf5Signature) {
    const h5::File h5 = h5::File::open_read(path);
    const Tensor model = h5.read("tokenizer");
    const auto* bytes = reinterpret_cast<const char*>(model.view().as<std::uint8_t>());
    return data::Tokenizer::from_parts(h5.attribute_string("tokenizer", "kind"),
                                       std::string(bytes, static_cast<std::size_t>(model.shape().numel())),
                                       path);
  }
  std::string content = read_whole(path);
  if (content.starts_with("MCTOKEN"))
    return data::Tokenizer::deserialise(
        {reinterpret_cast<const std::uint8_t*>(content.data()), content.size()}, path);
  return data::Tokenizer::from_parts("sentencepiece", std::move(content), path);
}

// Documents, encoded in parallel and written in order.
class Block {
 public:
  Block(const data::Tokenizer& tokenizer, int threads, data::TokenFileWriter& writer)
      : tokenizer_(tokenizer), threads_(threads), writer_(writer) {}

  bool full() const { return bytes_ >= kBlockBytes; }
  void add(const InputFile& input, Document document) {
    bytes_ += document.text.size();
    documents_.push_back(std::move(document));
    inputs_.push_back(&input);
  }
  void write() {
    std::vector<std::vector<std::int32_t>> ids(documents_.size());
    std::vector<std::exception_ptr> errors(documents_.size());
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
    for (std::size_t i = 0; i < documents_.size(); ++i) {
      try {
        ids[i] = tokenizer_.encode(documents_[i].text);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
    for (std::size_t i = 0; i < documents_.size(); ++i) {
      const Document& document = documents_[i];
      try {
        if (errors[i]) std::rethrow_exception(errors[i]);
        const std::int32_t label = document.label.has_value() ? writer_.label(*document.label) : -1;
        writer_.add(writer_.domain(document.domain), document.text, ids[i], label);
      } catch (const DataError& error) {
        throw DataError(fmt::format("{}:{}: {}", inputs_[i]->path, document.line, error.what()));
      }
    }
    documents_.clear();
    inputs_.clear();
    bytes_ = 0;
  }

 private:
  const data::Tokenizer& tokenizer_;
  int threads_;
  data::TokenFileWriter& writer_;
  std::vector<Document> documents_;
  std::vector<const InputFile*> inputs_;  // of each document
  std::size_t bytes_ = 0;
};

std::vector<std::string> read_labels(const std::string& path) {
  LineReader lines(path, 4096);
  std::vector<std::string> names;
  std::string_view line;
  while (lines.next(line)) {
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || std::ranges::find(names, line) != names.end())
      throw DataError(
          fmt::format("{}:{}: the label \"{}\" is empty or was named before; the file has one name a line",
                      path, lines.line_number(), line));
    names.emplace_back(line);
  }
  return names;
}

// Only a token file is ever replaced: a mistyped --output must not cost anybody their text.
void check_output(const PrepareOptions& options) {
  std::error_code none;
  for (const InputFile& input : options.inputs)
    if (std::filesystem::equivalent(input.path, options.output, none))
      throw UsageError(fmt::format("--output {} is one of the inputs; name another file", options.output));
  if (!std::filesystem::exists(options.output, none)) return;
  std::ifstream file(options.output, std::ios::binary);
  std::string head(8, '\0');
  file.read(head.data(), 8);
  if (head != kHdf5Signature)
    throw UsageError(fmt::format("--output {} exists and is no token file; remove it or name another file",
                                 options.output));
}

void print_summary(const PrepareOptions& options, const data::Tokenizer& tokenizer,
                   const data::TokenFileWriter& writer) {
  fmt::print("{}: tokenizer {} ({}, V = {})\n", options.output, tokenizer.hash(), to_string(tokenizer.kind()),
             tokenizer.vocab_size());
  fmt::print("{:<16} {:>10} {:>12} {:>14} {:>12} {:>12}\n", "domain", "side", "documents", "bytes", "tokens",
             "bytes/token");
  for (std::size_t d = 0; d < writer.domains().size(); ++d)
    for (const data::Split split : {data::Split::train, data::Split::validation}) {
      const data::DomainCounts& counts = writer.counts(split, static_cast<std::int32_t>(d));
      fmt::print(
          "{:<16} {:>10} {:>12} {:>14} {:>12} {:>12.2f}\n", writer.domains()[d], data::to_string(split),
          counts.documents, counts.bytes, counts.tokens,
          counts.tokens == 0 ? 0.0 : static_cast<double>(counts.bytes) / static_cast<double>(counts.tokens));
      if (counts.documents == 0 && (split == data::Split::train || options.file.validation_fraction > 0.0))
        fmt::print(stderr, "warning: domain {} has no {} document; use more documents or another --seed\n",
                   writer.domains()[d], data::to_string(split));
    }
}

}  // namespace

data::Tokenizer make_tokenizer(const PrepareOptions& options, const std::atomic<bool>& interrupted) {
  const std::string& which = options.tokenizer;
  if (which == "bytes") return data::Tokenizer::bytes();
  for (const auto& [prefix, type] :
       {std::pair{"bpe:", ModelType::bpe}, std::pair{"unigram:", ModelType::unigram}}) {
    if (!which.starts_with(prefix)) continue;
    const std::string number = which.substr(std::string_view(prefix).size());
    if (number.empty() || number.size() > 7 || number.find_first_not_of("0123456789") != std::string::npos)
      throw UsageError(
          fmt::format("--tokenizer {}: expected a number of tokens, as in {}4096", which, prefix));
    return train(Work(options, interrupted), type, std::stoll(number));
  }
  return load_tokenizer(which);
}

void prepare(const PrepareOptions& options, const std::atomic<bool>& interrupted) {
  check_output(options);
  const Work work(options, interrupted);
  const data::Tokenizer tokenizer = make_tokenizer(options, interrupted);
  data::TokenFileWriter writer(options.output, tokenizer, options.file);
  if (!options.labels.empty()) writer.set_labels(read_labels(options.labels));
  const int threads = options.threads > 0
                          ? options.threads
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::vector<data::SourceFile> sources;
  {
    Progress progress("tokenising", work.total_bytes, options.quiet);
    Block block(tokenizer, threads, writer);
    std::int64_t before = 0;
    for (const InputFile& input : options.inputs) {
      DocumentReader reader(input, options.read);
      Document document;
      std::int64_t documents = 0;
      while (reader.next(document)) {
        ++documents;
        block.add(input, std::move(document));
        if (!block.full()) continue;
        block.write();
        progress.update(before + reader.bytes_read());
        work.check_interrupted();
      }
      if (documents == 0) throw DataError(input.path + ": the file holds only white space");
      before += reader.bytes_read();
      sources.push_back({input.path, reader.xxh3_128()});
    }
    block.write();
    work.check_interrupted();
  }
  writer.finish(sources);
  if (!options.quiet) print_summary(options, tokenizer, writer);
}

}  // namespace moecollab::prepare
