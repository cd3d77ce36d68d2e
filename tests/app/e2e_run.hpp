// A small model on small text, trained with the program as its users start it; and what a run left behind.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "moecollab/core/random.hpp"
#include "moecollab/store/checkpoint.hpp"
#include "run_program.hpp"

namespace moecollab::app {

// Sentences of a domain's own words; document i of a domain is always the same.
inline std::string sentences(const std::string& domain, int document) {
  static const std::map<std::string, Words> kWords{
      {"weather", {"rain", "wind", "falls", "clouds", "storm", "over", "cold", "brings", "north", "the"}},
      {"kitchen", {"salt", "bread", "bakes", "butter", "pan", "in", "warm", "melts", "oven", "a"}},
      {"railway",
       {"train", "track", "stops", "signal", "station", "at", "late", "passes", "bridge", "every"}}};
  const Words& words = kWords.at(domain);
  std::string text;
  for (int i = 0; i < 30; ++i) {
    const std::int64_t draw =
        random_below(1, stream_of(domain.c_str()), static_cast<std::uint64_t>(document * 30 + i),
                     static_cast<std::int64_t>(words.size()));
    text += words[static_cast<std::size_t>(draw)] + (i % 10 == 9 ? ".\n" : " ");
  }
  return text;
}

class EndToEnd : public ::testing::Test {
 protected:
  // A token file of 60 documents of each domain.
  std::string make_data(const std::string& name, const Words& domains,
                        const std::string& tokenizer = "bytes") {
    Words words{"--output", folder_ / name, "--quiet", "--threads=1", "--validation-fraction=0.1"};
    for (const std::string& domain : domains) {
      std::ofstream text(folder_ / (domain + ".txt"));
      for (int i = 0; i < 60; ++i) text << sentences(domain, i) << '\n';
      words.insert(words.end(), {"--input", domain + "=" + folder_ / (domain + ".txt")});
    }
    const ProgramResult result = prepare(joined(words, {"--tokenizer", tokenizer}));
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return folder_ / name;
  }

  static Words small_training(int threads = 1) {
    return {"--train.seq_len=32",
            "--train.batch_size=6",
            "--train.eval_sequences=3",
            "--optimizer.warmup_steps=1",
            "--optimizer.lr=0.01",
            "--train.keep_checkpoints=99",
            "--train.threads=" + std::to_string(threads)};
  }
  Words train(const std::string& run, const std::string& data, const Words& more, int threads = 1) const {
    const Words model{"train",
                      "--run",
                      run,
                      "--data",
                      data,
                      "--model.hidden_size=32",
                      "--model.num_hidden_layers=2",
                      "--model.num_attention_heads=2",
                      "--model.num_key_value_heads=1",
                      "--model.head_dim=16",
                      "--model.max_position_embeddings=64",
                      "--expert.width=32"};
    return joined(joined(model, small_training(threads)), more);
  }

  test::TemporaryDirectory folder_;
};

inline void expect_done(const ProgramResult& result) {
  EXPECT_EQ(result.exit_code, 0) << result.output << result.errors;
}

// One message on the error stream with these parts, and this exit code.
inline void expect_failure(const ProgramResult& result, int code, const Words& parts) {
  EXPECT_EQ(result.exit_code, code) << result.output << result.errors;
  for (const std::string& part : parts)
    EXPECT_NE(result.errors.find(part), std::string::npos) << result.errors << "lacks " << part;
}

// What is in a folder and below it: path, size and time of every file, so that any change shows.
inline std::string listing(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (entry.is_regular_file())
      files[entry.path()] = std::to_string(entry.file_size()) + " " +
                            std::to_string(entry.last_write_time().time_since_epoch().count());
  std::string text;
  for (const auto& [path, facts] : files) text += path + " " + facts + "\n";
  return text;
}

inline void copy_run(const std::string& from, const std::string& to) {
  std::filesystem::copy(from, to, std::filesystem::copy_options::recursive);
}

// Tensors of a checkpoint by block, slot and name; blocks with their step counts. A checkpoint lists every
// one once (read_manifest checks the coverage).
struct Contents {
  std::map<std::string, std::string> digests;
  std::map<std::string, std::int64_t> optimizer_steps;
  std::vector<std::string> experts;  // names, in routing order
  bool operator==(const Contents&) const = default;
};
inline Contents contents_of(const std::string& checkpoint) {
  const store::Manifest manifest = store::read_manifest(checkpoint);
  Contents contents;
  for (const store::TensorEntry& tensor : manifest.tensors)
    contents.digests[std::string(to_string(tensor.kind)) + " " + to_string(tensor.uuid) + " " +
                     to_string(tensor.slot) + " " + tensor.name] = to_string(tensor.digest);
  EXPECT_EQ(contents.digests.size(), manifest.tensors.size());
  for (const store::BlockEntry& block : manifest.blocks)
    contents.optimizer_steps[std::string(to_string(block.kind)) + " " + to_string(block.uuid)] =
        block.optimizer_step;
  for (const ExpertSlot& slot : manifest.slots) contents.experts.push_back(slot.name);
  return contents;
}
inline Contents contents_at(const std::string& run, std::int64_t step) {
  return contents_of(store::checkpoint_directory(run, step));
}

// The loss of each step as metrics.jsonl spells it, which is exact; every step must stand there once, in
// order.
inline std::vector<std::string> losses_of(const std::string& run) {
  std::vector<std::string> losses;
  std::istringstream lines(test::slurp(run + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const auto record = nlohmann::json::parse(line);
    if (!record.contains("step_ms")) continue;  // an evaluation
    EXPECT_EQ(record["step"], losses.size() + 1) << line;
    losses.push_back(record["loss"].dump());
  }
  return losses;
}

inline bool wait_until(const std::function<bool()>& true_now, int timeout_s = 60) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(timeout_s);
  while (!true_now()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace moecollab::app
