// How good a model is on held-out text, domain by domain, and where it sends each domain.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moecollab/core/step.hpp"
#include "moecollab/data/sampler.hpp"
#include "moecollab/nn/parallel.hpp"
#include "moecollab/nn/transformer.hpp"

namespace moecollab::train {

struct DomainScore {
  std::string domain;
  std::int64_t sequences = 0;
  std::int64_t targets = 0;
  std::int64_t bytes = 0;      // of text behind the targets
  double loss = 0.0;           // mean cross-entropy per target, nats
  double bits_per_byte = 0.0;  // lm: loss_sum / ln 2 / bytes, comparable across tokenizers
  double accuracy = 0.0;       // classifier
  double macro_f1 = 0.0;       // classifier: mean over the classes that occur in the labels of the domain
  double token_entropy = 0.0;  // H_tok / ln E, mean over MoE layers
  std::vector<std::int64_t> picks;  // [E], all MoE layers, before capacity
};

struct Scores {
  std::vector<DomainScore> domains;
  double token_entropy = 0.0;  // means over domains, each domain weighing the same
  double batch_entropy = 0.0;  // H_bat / ln E of the mean over domains of the pick shares
  double utilisation = 0.0;    // exp(H(shares)) / E of the same
};

// Every rank calls it; the result is the same on all. `batch_size`: sequences at once over all ranks.
Scores evaluate(Step& step, const nn::Transformer& model, const nn::Parallel& parallel,
                const data::Dataset& dataset, const data::EvalSet& set, std::int64_t batch_size);

}  // namespace moecollab::train
