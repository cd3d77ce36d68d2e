// Anchor and shards become one model without a changed bit, and a shard that does not fit is refused with its
// reason.
#include "moecollab/collab/contribution.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <random>

#include "moecollab/core/error.hpp"
#include "moecollab/store/checkpoint.hpp"
#include "moecollab/store/shard.hpp"
#include "support/synthetic_model.hpp"
#include "support/temporary_directory.hpp"

// The HDF5 library loses memory of its own when it meets damaged metadata; a leak check is not to report that
// here.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }

namespace moecollab {
namespace {

namespace fs = std::filesystem;
using test::SyntheticModel;

ExpertSlot contributed_slot(std::uint64_t i) {
  ExpertSlot slot = test::synthetic_slot(100 + i);
  slot.name = "contributed-" + std::to_string(i);
  slot.width = 4 + static_cast<std::int64_t>(i);
  slot.trainable = true;
  return slot;
}

class Contribution : public testing::Test {
 protected:
  void SetUp() override {
    anchor_model_.fill(1);
    save(anchor_, anchor_model_, 500);
    manifest_ = store::read_manifest(anchor_);
    fs::create_directories(run_ / "shards");
  }

  static void save(const std::string& directory, const SyntheticModel& model, std::int64_t step) {
    store::CheckpointMeta meta;
    meta.state = {step, 1000, 10};
    meta.model_json = R"({"hidden_size":8})";
    meta.tokenizer = "a tokenizer";
    meta.config_ini = "[model]\n";
    store::save_checkpoint(directory, meta, model.params, model.slots, Communicator::self());
  }

  // What a contributor has at the end: the anchor's blocks and one expert of their own.
  collab::ExportedContribution contribute(std::uint64_t i,
                                          const std::function<void(SyntheticModel&)>& edit = {},
                                          DType dtype = DType::f32) {
    auto slots = anchor_slots_;
    slots.push_back(contributed_slot(i));
    SyntheticModel model(dtype, slots);
    model.fill(50 + i);
    if (edit) edit(model);
    return collab::export_contribution(run_ / "shards", model.params, contributed_slot(i), manifest_, 12345);
  }

  // The message with which the shard is refused; nothing may stay behind.
  std::string refusal(const std::vector<std::string>& shards) {
    std::string message;
    try {
      collab::assemble(anchor_, shards, out_);
      ADD_FAILURE() << "was admitted";
    } catch (const ContributionError& error) {
      message = error.what();
    }
    EXPECT_FALSE(fs::exists(out_));
    EXPECT_FALSE(fs::exists(out_ + ".partial"));
    return message;
  }
  static void expect_has(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
  }

  // Rewrites a shard with consistent digests but other content: what its author could do.
  std::string forge(const std::string& path, const std::function<void(store::ReadShard&)>& edit) {
    store::ReadShard shard = store::read_shard(path);
    edit(shard);
    store::Attributes attributes(shard.attributes.begin(), shard.attributes.end());
    std::vector<store::ShardTensor> tensors;
    for (const auto& [dataset, tensor] : shard.tensors)
      tensors.push_back({BlockKind::expert, {}, store::Slot::value, dataset, tensor.view(), dataset});
    store::write_shard(run_ / "shards", "forged.h5", tensors, attributes);
    return run_ / "shards/forged.h5";
  }

  const test::TemporaryDirectory run_;
  const std::string anchor_ = run_ / "anchor", out_ = run_ / "assembled";
  const std::vector<ExpertSlot> anchor_slots_ = test::synthetic_slots(3);
  SyntheticModel anchor_model_{DType::f32, anchor_slots_};
  store::Manifest manifest_;
};

TEST_F(Contribution, TellsItsStory) {
  const collab::ExportedContribution exported = contribute(1);
  EXPECT_EQ(exported.path, run_ / "shards/expert-" + to_string(exported.meta.expert.uuid) + ".h5");
  const collab::ContributionMeta meta = collab::read_contribution_meta(exported.path);
  EXPECT_EQ(meta.expert.uuid, exported.meta.expert.uuid);
  EXPECT_NE(meta.expert.uuid, contributed_slot(1).uuid);
  EXPECT_EQ(meta.expert.name, "contributed-1");
  EXPECT_EQ(meta.expert.owner, contributed_slot(1).owner);
  EXPECT_EQ(meta.expert.domain, contributed_slot(1).domain);
  EXPECT_EQ(meta.expert.width, 5);
  EXPECT_EQ(meta.tokens_trained, 12345);
  EXPECT_EQ(meta.anchor_digest, manifest_.digest);
  EXPECT_EQ(meta.tokenizer_digest, store::digest_of(std::string("a tokenizer")));
  EXPECT_EQ(meta.model_json, R"({"hidden_size":8})");
  EXPECT_EQ(meta.dtype, DType::f32);
}

TEST_F(Contribution, IdentityIsTheWeights) {
  const Uuid first = contribute(1).meta.expert.uuid;
  EXPECT_EQ(contribute(1).meta.expert.uuid, first);
  // Another gate, the same expert.
  EXPECT_EQ(contribute(1,
                       [](SyntheticModel& model) {
                         const Block* rows =
                             model.params.find_block(BlockKind::router, contributed_slot(1).uuid);
                         rows->master().as<float>()[0] += 1.0f;
                       })
                .meta.expert.uuid,
            first);
  EXPECT_NE(contribute(1,
                       [](SyntheticModel& model) {
                         const Block* expert =
                             model.params.find_block(BlockKind::expert, contributed_slot(1).uuid);
                         expert->master().as<float>()[0] += 1.0f;
                       })
                .meta.expert.uuid,
            first);
}

TEST_F(Contribution, AssemblyKeepsEveryBitOfAnchorAndShards) {
  const auto one = contribute(1), two = contribute(2);
  const store::Manifest assembled = collab::assemble(anchor_, {one.path, two.path}, out_);
  EXPECT_NO_THROW(store::verify_checkpoint(out_));
  const store::Manifest read = store::read_manifest(out_);
  EXPECT_EQ(read.digest, assembled.digest);
  EXPECT_EQ(read.state.step, 0);
  EXPECT_EQ(read.model_json, manifest_.model_json);
  EXPECT_EQ(read.extra.at("anchor_xxh3_128"), to_string(manifest_.digest));
  ASSERT_EQ(read.slots.size(), 5u);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(read.slots[i].uuid, anchor_slots_[i].uuid);
  EXPECT_EQ(read.slots[3].uuid, one.meta.expert.uuid);
  EXPECT_EQ(read.slots[4].uuid, two.meta.expert.uuid);
  for (const ExpertSlot& slot : read.slots) EXPECT_FALSE(slot.trainable);

  for (const store::FileEntry& file : manifest_.files) {
    if (file.name == store::kRouterFile) continue;
    EXPECT_EQ(test::slurp(anchor_ + "/" + file.name), test::slurp(out_ + "/" + file.name)) << file.name;
    ASSERT_NE(read.find_file(file.name), nullptr);
    EXPECT_EQ(read.find_file(file.name)->digest, file.digest) << file.name;
  }

  SyntheticModel model(DType::f32, read.slots);
  store::load_blocks(out_, read, model.params, {.optimizer_state = false});
  for (const Block& block : anchor_model_.params.blocks())
    EXPECT_TRUE(test::same_bits(model.params.find_block(block.kind, block.uuid)->master(), block.master()));
  for (std::uint64_t i : {1, 2}) {
    auto slots = anchor_slots_;
    slots.push_back(contributed_slot(i));
    const SyntheticModel contributor = std::move(SyntheticModel(DType::f32, slots).fill(50 + i));
    const Uuid uuid = (i == 1 ? one : two).meta.expert.uuid;
    for (const BlockKind kind : {BlockKind::expert, BlockKind::router})
      EXPECT_TRUE(test::same_bits(model.params.find_block(kind, uuid)->master(),
                                  contributor.params.find_block(kind, contributed_slot(i).uuid)->master()));
  }
}

TEST_F(Contribution, AssemblyIsReproducibleAndAsksBeforeItReplaces) {
  const auto one = contribute(1);
  collab::assemble(anchor_, {one.path}, out_);
  EXPECT_THROW(collab::assemble(anchor_, {one.path}, out_), UsageError);
  collab::assemble(anchor_, {one.path}, run_ / "again");
  collab::assemble(anchor_, {one.path}, out_, {.trainable_experts = true, .replace = true});
  const store::Manifest manifest = store::read_manifest(out_);
  for (const ExpertSlot& slot : manifest.slots) EXPECT_TRUE(slot.trainable);
  for (const store::FileEntry& file : manifest.files)
    EXPECT_EQ(store::read_manifest(run_ / "again").find_file(file.name)->digest, file.digest) << file.name;
}

TEST_F(Contribution, AnExpertCanBeTakenOutAgain) {
  const auto one = contribute(1), two = contribute(2);
  collab::assemble(anchor_, {one.path, two.path}, out_);
  const store::Manifest without = collab::remove_expert(out_, "contributed-1", run_ / "without");
  collab::assemble(anchor_, {two.path}, run_ / "never");
  const store::Manifest never = store::read_manifest(run_ / "never");
  ASSERT_EQ(without.files.size(), never.files.size());
  for (const store::FileEntry& file : never.files)
    EXPECT_EQ(without.find_file(file.name)->digest, file.digest) << file.name;
  EXPECT_THROW(collab::remove_expert(out_, "contributed-9", run_ / "x"), UsageError);
}

TEST_F(Contribution, OfAnotherAnchorIsRefused) {
  const auto one = contribute(1);
  anchor_model_.fill(2);
  save(anchor_, anchor_model_, 500);
  const std::string message = refusal({one.path});
  expect_has(message, "another anchor");
  expect_has(message, to_string(manifest_.digest));
  expect_has(message, to_string(store::read_manifest(anchor_).digest));
}

TEST_F(Contribution, TwiceIsRefused) {
  const auto one = contribute(1);
  expect_has(refusal({one.path, one.path}), "already as 'contributed-1'");
  const auto other = contribute(1, [](SyntheticModel& model) {
    model.params.find_block(BlockKind::expert, contributed_slot(1).uuid)->master().as<float>()[0] += 1.0f;
  });
  expect_has(refusal({one.path, other.path}), "under another name");
}

TEST_F(Contribution, OfAnotherShapeOrTypeIsRefused) {
  const auto one = contribute(1);
  // The author's own digests are right, the id is that of the weights: only the shape is wrong.
  const auto reidentified = [&](const std::function<void(store::ReadShard&)>& edit) {
    return refusal({forge(one.path, edit)});
  };
  expect_has(reidentified([](auto& shard) { shard.attributes["width"] = std::int64_t{6}; }), "of width 6");
  expect_has(reidentified([](auto& shard) { shard.attributes["width"] = std::int64_t{0}; }), "has width 0");
  expect_has(reidentified([](auto& shard) { shard.attributes["name"] = std::string(); }), "has no name");
  expect_has(reidentified([](auto& shard) { shard.attributes["name"] = std::string("expert-1"); }),
             "under another name");
  expect_has(reidentified([](auto& shard) { shard.attributes["format"] = std::string("moecollab-shard"); }),
             "is a 'moecollab-shard'");
  expect_has(reidentified([](auto& shard) { shard.attributes["format_version"] = std::int64_t{2}; }),
             "format version 2");
  expect_has(reidentified([](auto& shard) { shard.attributes.erase("owner"); }), "no attribute 'owner'");
  expect_has(
      reidentified([](auto& shard) { shard.tensors["router/layers.0.weight"] = Tensor(DType::f32, {9}); }),
      "has shape [9], the anchor's router has [8]");
  expect_has(
      reidentified([](auto& shard) { shard.tensors["router/layers.0.weight"] = Tensor(DType::f64, {8}); }),
      "is f64, the anchor keeps its weights in f32");
  expect_has(
      reidentified([](auto& shard) { shard.tensors["router/layers.0.weight"] = Tensor(DType::bf16, {8}); }),
      "is bf16");
  expect_has(reidentified([](auto& shard) { shard.tensors.erase("router/layers.1.logit_bias"); }),
             "lacks 'layers.1.logit_bias'");
  expect_has(reidentified([](auto& shard) { shard.tensors["router/extra"] = Tensor(DType::f32, {1}); }),
             "has 'extra' among its router rows");
  expect_has(reidentified([](auto& shard) { shard.tensors["elsewhere/x"] = Tensor(DType::f32, {1}); }),
             "neither under value/ nor under router/");
  expect_has(reidentified([](auto& shard) { shard.tensors.erase("value/layers.0.up_proj.weight"); }),
             "its weights are those of");
  EXPECT_NO_THROW(collab::assemble(anchor_, {forge(one.path, [](auto&) {})}, out_));
}

TEST_F(Contribution, OfForeignWeightsIsRefused) {
  auto slots = anchor_slots_;
  slots.push_back(contributed_slot(1));
  const auto refused = [&](DType dtype, const std::vector<ParamSpec>& specs, const ExpertSlot& slot) {
    ParamStore params(dtype);
    params.add_block(BlockKind::router, slot.uuid, test::router_specs(), true);
    params.add_block(BlockKind::expert, slot.uuid, specs, true);
    return refusal({collab::export_contribution(run_ / "shards", params, slot, manifest_, 1).path});
  };
  const ExpertSlot slot = contributed_slot(1);
  expect_has(refused(DType::f64, test::expert_specs(slot.width), slot), "f64");
  auto specs = test::expert_specs(slot.width);
  specs.pop_back();
  expect_has(refused(DType::f32, specs, slot), "lacks 'layers.1.down_proj.weight'");
  specs = test::expert_specs(slot.width);
  specs[0].shape = {slot.width, test::kHidden + 1};
  expect_has(refused(DType::f32, specs, slot), "[5, 9]");
  specs[0].shape = {test::kHidden, slot.width};  // the other way round
  expect_has(refused(DType::f32, specs, slot), "[8, 5]");
  ExpertSlot adapter = slot;
  adapter.kind = ExpertKind::adapter;  // the anchor has none of these
  expect_has(refused(DType::f32, {{"layers.0.a.weight", {adapter.width, 7}, Init::zeros()}}, adapter),
             "[5, 7]");
}

TEST_F(Contribution, NonFiniteValuesAreRefusedOnBothSides) {
  const auto poison = [](BlockKind kind, float value) {
    return [kind, value](SyntheticModel& model) {
      model.params.find_block(kind, contributed_slot(1).uuid)->master().as<float>()[3] = value;
    };
  };
  EXPECT_THROW(contribute(1, poison(BlockKind::expert, NAN)), ContributionError);
  EXPECT_THROW(contribute(1, poison(BlockKind::router, INFINITY)), ContributionError);
  const auto one = contribute(1);
  for (const char* dataset : {"value/layers.0.up_proj.weight", "router/layers.1.weight"})
    expect_has(refusal({forge(one.path,
                              [&](store::ReadShard& shard) {
                                shard.tensors.at(dataset).view().as<float>()[3] =
                                    -std::numeric_limits<float>::infinity();
                              })}),
               "not finite");
}

TEST_F(Contribution, CutShortIsRefused) {
  const auto one = contribute(1);
  const auto size = fs::file_size(one.path);
  const std::string cut = run_ / "shards/cut.h5";
  for (std::uintmax_t percent = 0; percent < 100; ++percent) {
    fs::copy_file(one.path, cut, fs::copy_options::overwrite_existing);
    fs::resize_file(cut, size * percent / 100);
    refusal({cut});
  }
  refusal({run_ / "shards/absent.h5"});
  refusal({run_ / "shards"});
}

// A flipped bit is either refused, or lies where nothing is taken from: then the assembled model is the same.
TEST_F(Contribution, AFlippedBitIsRefusedOrChangesNothing) {
  const auto one = contribute(1);
  const store::Manifest expected = collab::assemble(anchor_, {one.path}, out_);
  fs::remove_all(out_);
  std::mt19937_64 engine(11);
  int refused = 0, harmless = 0;
  for (int i = 0; i < 300; ++i) {
    const auto byte = static_cast<std::size_t>(engine() % fs::file_size(one.path));
    const int bit = static_cast<int>(engine() % 8);
    test::flip_bit(one.path, byte, bit);
    try {
      const store::Manifest manifest = collab::assemble(anchor_, {one.path}, out_);
      ++harmless;
      for (const store::FileEntry& file : expected.files)
        EXPECT_EQ(manifest.find_file(file.name)->digest, file.digest)
            << file.name << " byte " << byte << " bit " << bit;
      fs::remove_all(out_);
    } catch (const ContributionError&) {
      ++refused;
    }
    test::flip_bit(one.path, byte, bit);
  }
  EXPECT_GT(refused, 200) << harmless << " harmless";
}

TEST_F(Contribution, LinksAndForeignStorageAreRefused) {
  if (!test::has_h5py()) GTEST_SKIP() << "python3-h5py is not installed";
  const auto one = contribute(1);
  const std::string edits[] = {
      "f['value/extra'] = h5py.SoftLink('/value/layers.0.up_proj.weight')",
      "f['value/extra'] = h5py.ExternalLink('other.h5', '/x')",
      "f['value/extra'] = f['value/layers.0.up_proj.weight']",
      "f['value/loop'] = f['value']",
      "f.create_dataset('value/extra', (2,), 'f4', external=[('/etc/hostname', 0, 8)])",
      "f.create_dataset('value/extra', (4,), 'f4', chunks=(2,))",
      "f.create_dataset('value/extra', data=np.zeros(3, 'f4'))",
      "f['value/layers.0.up_proj.weight'][0, 0] = 7",
      "f.attrs['note'] = np.bytes_(b'x')",
      "f.attrs['note'] = 'variable length'",
      "f.attrs['name'] = np.bytes_(b'another')",
      "f.attrs['tokens_trained'] = np.int64(10**12)",
      "del f.attrs['owner']",
      "del f['router']",
  };
  for (const std::string& edit : edits) {
    const std::string path = run_ / "shards/edited.h5";
    fs::copy_file(one.path, path, fs::copy_options::overwrite_existing);
    ASSERT_EQ(test::run_python("import h5py, numpy as np\nf = h5py.File('" + path +
                               "', 'r+', libver='latest')\n" + edit + "\nf.close()\n"),
              0)
        << edit;
    SCOPED_TRACE(edit);
    refusal({path});
  }
}

TEST_F(Contribution, ADamagedAnchorIsNotAssembled) {
  const auto one = contribute(1);
  const store::TensorEntry& tensor = *manifest_.tensors_of(BlockKind::trunk, {}, store::Slot::value).front();
  test::flip_bit(anchor_ + "/" + tensor.file, static_cast<std::size_t>(tensor.offset_bytes), 0);
  EXPECT_THROW(collab::assemble(anchor_, {one.path}, out_), CheckpointError);
  EXPECT_FALSE(fs::exists(out_));
  EXPECT_FALSE(fs::exists(out_ + ".partial"));
}

}  // namespace
}  // namespace moecollab
