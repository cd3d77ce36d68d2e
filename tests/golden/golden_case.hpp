// One golden file: its configuration, and its numbers as tensors of the type a test computes in.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "moecollab/core/expert_slots.hpp"
#include "moecollab/core/param_store.hpp"
#include "moecollab/h5/file.hpp"
#include "moecollab/nn/batch.hpp"
#include "moecollab/nn/model_config.hpp"
#include "moecollab/train/train_config.hpp"

namespace moecollab::golden {

// A micro-batch that owns what its view shows.
struct OwnedBatch {
  Tensor tokens, targets, lengths, segments, domains;
  nn::Batch view;
};

class GoldenCase {
 public:
  explicit GoldenCase(const std::string& name);

  nn::ModelConfig model_config(DType dtype) const;
  train::TrainConfig train_config() const;
  ExpertSlots slots() const;

  // Writes the initial values into every parameter. Fails the test unless file and store have the same
  // blocks, names and shapes.
  void load_initial(const ExpertSlots& slots, ParamStore& params) const;
  // The micro-batches of step s (from 0).
  std::vector<OwnedBatch> micro_batches(std::int64_t step) const;

  Tensor tensor(const std::string& name) const { return file_.read(name); }  // f64
  double attribute(const std::string& name) const { return file_.attribute_f64("/", name); }
  std::string block_name(const ExpertSlots& slots, const Block& block) const;  // "trunk", "router.0", ...

 private:
  const std::string& text(const std::string& key) const;
  std::int64_t integer(const std::string& key) const { return std::stoll(text(key)); }
  double real(const std::string& key) const { return std::stod(text(key)); }
  bool flag(const std::string& key) const { return text(key) == "true"; }

  h5::File file_;
  std::map<std::string, std::string> config_;
};

// The largest |have - want| as a share of the largest |want| (at least `floor`); 0 for empty tensors. `have`
// may be of any floating type or i32, `want` is f64 of the same number of elements.
double relative_difference(ConstTensorView have, ConstTensorView want, double floor = 0.0);

}  // namespace moecollab::golden
