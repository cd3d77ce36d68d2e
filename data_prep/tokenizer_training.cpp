#include "tokenizer_training.hpp"

#include <fmt/format.h>
#include <sentencepiece_trainer.h>

#include <unordered_map>

#include "moecollab/core/error.hpp"

namespace moecollab::prepare {
namespace {

class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(std::vector<std::string> sentences) : sentences_(std::move(sentences)) {}
  bool done() const override { return next_ == sentences_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return sentences_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> sentences_;
  std::size_t next_ = 0;
};

}  // namespace

data::Tokenizer train_tokenizer(ModelType type, std::int64_t vocab_size, std::vector<std::string> sentences) {
  if (vocab_size < kMinVocabSize)
    throw UsageError(
        fmt::format("a tokenizer of {} tokens is too small: 256 of them are the bytes; use at least {}",
                    vocab_size, kMinVocabSize));
  if (sentences.empty()) throw DataError("there is no text to train a tokenizer on");
  const std::unordered_map<std::string, std::string> options = {
      {"model_type", type == ModelType::bpe ? "bpe" : "unigram"},
      {"vocab_size", std::to_string(vocab_size)},
      {"hard_vocab_limit", "false"},
      {"character_coverage", "0.9999"},  // rarer characters are written as bytes
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},  // indentation
      {"split_digits", "true"},
      {"user_defined_symbols", "\n,\t"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "3"},
      {"num_threads", "1"},  // sums of several threads would depend on their order
      {"input_sentence_size", "0"},
      {"shuffle_input_sentence", "false"},
      {"max_sentence_length", "1000000"},
      {"minloglevel", "2"},
  };
  Sentences iterator(std::move(sentences));
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &iterator, &model);
  if (!status.ok())
    throw DataError(fmt::format("SentencePiece could not train a tokenizer of {} tokens: {}", vocab_size,
                                status.ToString()));
  return data::Tokenizer::sentencepiece(std::move(model));
}

}  // namespace moecollab::prepare
