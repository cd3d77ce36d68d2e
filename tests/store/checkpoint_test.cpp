// What is saved comes back bit for bit, on any number of ranks, and what is not whole is not loaded.
#include "moecollab/store/checkpoint.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "moecollab/core/error.hpp"
#include "moecollab/store/shard.hpp"
#include "support/synthetic_model.hpp"
#include "support/temporary_directory.hpp"

namespace moecollab {
namespace {

namespace fs = std::filesystem;
using store::Manifest;
using test::SyntheticModel;

store::CheckpointMeta meta_of(std::int64_t step) {
  store::CheckpointMeta meta;
  meta.state = {step, step * 4096, step * 16};
  meta.model_json = R"({"vocab_size":13,"hidden_size":8,"rms_norm_eps":1e-05,"rope":{"theta":10000.0}})";
  meta.config_ini = "[train]\nsteps = 7\n";
  meta.tokenizer = std::string("bytes\0\xff of a tokenizer", 23);
  meta.extra = {{"note", "gr\xc3\xbcn \"quoted\"\n"}};
  meta.run_id = "run-1";
  return meta;
}

store::Digest save(const std::string& directory, const SyntheticModel& model, std::int64_t step = 120) {
  return store::save_checkpoint(directory, meta_of(step), model.params, model.slots, Communicator::self());
}

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& item : fs::directory_iterator(directory)) names.push_back(item.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// The message of the CheckpointError that `action` throws.
template <class Action>
std::string refusal(const Action& action) {
  try {
    action();
  } catch (const CheckpointError& error) {
    return error.what();
  }
  ADD_FAILURE() << "was not refused";
  return "";
}
void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

class CheckpointOfType : public testing::TestWithParam<DType> {};

TEST_P(CheckpointOfType, ComesBackBitForBitOnAnyNumberOfRanks) {
  const test::TemporaryDirectory run;
  const auto experts = test::synthetic_slots(5);
  const SyntheticModel saved = std::move(SyntheticModel(GetParam(), experts).fill(3));
  const std::string directory = store::checkpoint_directory(run.path(), 120);
  EXPECT_EQ(directory, run / "checkpoints/step-00000120");
  const store::Digest digest = save(directory, saved);

  const Manifest manifest = store::read_manifest(directory);
  EXPECT_EQ(manifest.digest, digest);
  EXPECT_EQ(manifest.digest, store::digest_of(test::slurp(directory + "/manifest.json")));
  EXPECT_EQ(manifest.state.step, 120);
  EXPECT_EQ(manifest.state.tokens_seen, 120 * 4096);
  EXPECT_EQ(manifest.state.data_position, 120 * 16);
  EXPECT_EQ(manifest.dtype, GetParam());
  EXPECT_EQ(manifest.model_json, meta_of(1).model_json);
  EXPECT_EQ(manifest.extra, meta_of(1).extra);
  EXPECT_EQ(manifest.run_id, "run-1");
  EXPECT_EQ(store::read_file(directory, manifest, store::kTokenizerFile), meta_of(1).tokenizer);
  EXPECT_EQ(store::read_file(directory, manifest, store::kConfigFile), meta_of(1).config_ini);
  ASSERT_EQ(manifest.slots.size(), experts.size());
  for (std::size_t i = 0; i < experts.size(); ++i) {
    EXPECT_EQ(manifest.slots[i].uuid, experts[i].uuid);
    EXPECT_EQ(manifest.slots[i].name, experts[i].name);
    EXPECT_EQ(manifest.slots[i].owner, experts[i].owner);
    EXPECT_EQ(manifest.slots[i].domain, experts[i].domain);
    EXPECT_EQ(manifest.slots[i].version, experts[i].version);
    EXPECT_EQ(manifest.slots[i].kind, experts[i].kind);
    EXPECT_EQ(manifest.slots[i].width, experts[i].width);
    EXPECT_EQ(manifest.slots[i].trainable, experts[i].trainable);
  }

  for (const std::int32_t ep : {1, 2, 3, 5, 8}) {  // 8: ranks without experts
    std::multiset<Uuid> loaded_experts;
    for (std::int32_t rank = 0; rank < ep; ++rank) {
      SyntheticModel loaded(GetParam(), manifest.slots, ep, rank);
      store::load_blocks(directory, manifest, loaded.params);
      EXPECT_EQ(test::difference(loaded, saved), "") << "rank " << rank << " of " << ep;
      for (const Block& block : loaded.params.blocks())
        if (block.kind == BlockKind::expert) loaded_experts.insert(block.uuid);
    }
    EXPECT_EQ(loaded_experts.size(), experts.size());
    for (const ExpertSlot& slot : experts) EXPECT_EQ(loaded_experts.count(slot.uuid), 1u);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CheckpointOfType, testing::Values(DType::f32, DType::bf16, DType::f64),
                         [](const auto& type) { return std::string(to_string(type.param)); });

TEST(Checkpoint, HasTheFilesOfItsLayoutAndNothingElse) {
  const test::TemporaryDirectory run;
  const SyntheticModel model = std::move(SyntheticModel(DType::f32, test::synthetic_slots(2)).fill(1));
  save(run / "c", model);
  std::vector<std::string> expected{"config.ini", "manifest.json", "router.h5", "tokenizer.bin",
                                    "trunk-00000-of-00001.h5"};
  for (const ExpertSlot& slot : model.slots.slots())
    expected.push_back("expert-" + to_string(slot.uuid) + ".h5");
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(names_in(run / "c"), expected);
  EXPECT_EQ(names_in(run.path()), std::vector<std::string>{"c"});
}

TEST(Checkpoint, SameContentGivesTheSameFiles) {
  const test::TemporaryDirectory run;
  const SyntheticModel model = std::move(SyntheticModel(DType::bf16, test::synthetic_slots(3)).fill(1));
  save(run / "a", model);
  save(run / "b", model);
  for (const std::string& name : names_in(run / "a")) {
    if (name == "manifest.json") continue;  // holds the time
    EXPECT_EQ(test::slurp(run / "a/" + name), test::slurp(run / "b/" + name)) << name;
  }
}

TEST(Checkpoint, IsReplacedAtTheSameStep) {
  const test::TemporaryDirectory run;
  const auto experts = test::synthetic_slots(3);
  save(run / "c", std::move(SyntheticModel(DType::f32, experts).fill(1)));
  const SyntheticModel second = std::move(SyntheticModel(DType::f32, {experts[0], experts[2]}).fill(2));
  save(run / "c", second);
  const Manifest manifest = store::read_manifest(run / "c");
  SyntheticModel loaded(DType::f32, manifest.slots);
  store::load_blocks(run / "c", manifest, loaded.params);
  EXPECT_EQ(test::difference(loaded, second), "");
  EXPECT_FALSE(fs::exists(run / "c/expert-" + to_string(experts[1].uuid) + ".h5"));
  EXPECT_EQ(names_in(run.path()), std::vector<std::string>{"c"});
}

TEST(Checkpoint, ConvertsBetweenF32AndF64AndKeepsTheMasterOfBf16) {
  const test::TemporaryDirectory run;
  const auto experts = test::synthetic_slots(2);
  const SyntheticModel narrow = std::move(SyntheticModel(DType::bf16, experts).fill(1));
  save(run / "c", narrow);
  const Manifest manifest = store::read_manifest(run / "c");
  SyntheticModel wide(DType::f64, experts), single(DType::f32, experts);
  store::load_blocks(run / "c", manifest, wide.params);
  store::load_blocks(run / "c", manifest, single.params);
  for (std::size_t b = 0; b < narrow.params.blocks().size(); ++b) {
    const Block& from = narrow.params.blocks()[b];
    for (std::int64_t i = 0; i < from.numel; ++i) {
      const float master = from.master().as<float>()[i];
      ASSERT_EQ(wide.params.blocks()[b].value().as<double>()[i], static_cast<double>(master));
      ASSERT_EQ(single.params.blocks()[b].value().as<float>()[i], master);
    }
  }
}

TEST(Checkpoint, WithoutOptimizerStateOnlyWeightsAreTouched) {
  const test::TemporaryDirectory run;
  const auto experts = test::synthetic_slots(3);
  const SyntheticModel saved = std::move(SyntheticModel(DType::f32, experts).fill(1));
  save(run / "c", saved);
  SyntheticModel loaded(DType::f32, experts);
  store::load_blocks(run / "c", store::read_manifest(run / "c"), loaded.params, {.optimizer_state = false});
  EXPECT_EQ(test::difference(loaded, saved, false), "");
  for (const Block& block : loaded.params.blocks()) {
    EXPECT_EQ(block.optimizer_step, 0);
    for (std::int64_t i = 0; block.trainable && i < block.numel; ++i)
      ASSERT_EQ(block.exp_avg().as<float>()[i], 0.0f);
  }
}

TEST(Checkpoint, ModelAndCheckpointMustAgree) {
  const test::TemporaryDirectory run;
  const auto experts = test::synthetic_slots(3);
  save(run / "c", std::move(SyntheticModel(DType::f32, experts).fill(1)));
  const Manifest manifest = store::read_manifest(run / "c");
  const auto load = [&](ParamStore& params, const Manifest& from) {
    return refusal([&] { store::load_blocks(run / "c", from, params); });
  };
  {
    SyntheticModel model(DType::f32, test::synthetic_slots(4));
    expect_has(load(model.params, manifest), to_string(test::synthetic_slot(3).uuid));
  }
  {
    ExpertSlot wider = experts[0];
    wider.width += 1;
    SyntheticModel model(DType::f32, {wider});
    expect_has(load(model.params, manifest), "[5, 8] there and [6, 8] in the model");
  }
  {
    SyntheticModel model(DType::f32, {});
    auto specs = test::trunk_specs();
    specs.push_back({"lm_head.weight", {13, 8}, Init::zeros()});
    ParamStore params(DType::f32);
    params.add_block(BlockKind::trunk, {}, specs, true);
    expect_has(load(params, manifest), "has no tensor 'lm_head.weight'");
  }
  {
    auto specs = test::trunk_specs();
    specs.pop_back();
    ParamStore params(DType::f32);
    params.add_block(BlockKind::trunk, {}, specs, true);
    expect_has(load(params, manifest), "'layers.1.input_layernorm.weight' that the model does not have");
  }
  {
    auto thawed = experts;
    thawed[1].trainable = true;
    SyntheticModel model(DType::f32, thawed);
    expect_has(load(model.params, manifest), "was frozen there");
  }
}

TEST(Checkpoint, AnExpertThatNobodyHoldsIsNotSavedSilently) {
  const test::TemporaryDirectory run;
  const auto experts = test::synthetic_slots(4);
  save(run / "c", std::move(SyntheticModel(DType::f32, experts).fill(1)));
  const std::string before = test::slurp(run / "c/manifest.json");
  const SyntheticModel half = std::move(SyntheticModel(DType::f32, experts, 2, 0).fill(2));
  expect_has(refusal([&] { save(run / "c", half); }), "must be there exactly once, 0 ranks");
  EXPECT_EQ(test::slurp(run / "c/manifest.json"), before);
  EXPECT_EQ(names_in(run.path()), std::vector<std::string>{"c"});
}

TEST(Coverage, EveryBlockAndTensorExactlyOnce) {
  const test::TemporaryDirectory run;
  save(run / "c", std::move(SyntheticModel(DType::f32, test::synthetic_slots(3)).fill(1)));
  const Manifest good = store::read_manifest(run / "c");
  EXPECT_NO_THROW(store::check_coverage(good));
  const auto refuse = [&](auto&& edit) {
    Manifest bad = good;
    edit(bad);
    return refusal([&] { store::check_coverage(bad); });
  };
  expect_has(refuse([](Manifest& m) { m.blocks.pop_back(); }), "found 0 times");
  expect_has(refuse([](Manifest& m) { m.blocks.push_back(m.blocks.back()); }), "found 2 times");
  expect_has(refuse([](Manifest& m) { m.tensors.push_back(m.tensors.back()); }), "listed twice");
  expect_has(refuse([](Manifest& m) { m.files.push_back(m.files.back()); }), "listed twice");
  expect_has(refuse([](Manifest& m) { m.files.pop_back(); }), "not listed");
  expect_has(refuse([](Manifest& m) { m.slots.push_back(m.slots[0]); }), "listed twice");
  expect_has(refuse([](Manifest& m) { m.slots.pop_back(); }), "7 blocks for 2 experts");
  expect_has(
      refuse([](Manifest& m) { m.tensors[0].offset_bytes = m.find_file(m.tensors[0].file)->size_bytes; }),
      "ends outside");
  expect_has(refuse([](Manifest& m) { m.files[0].name = "../" + m.files[0].name; }),
             "is not the name of a file");
  expect_has(refuse([](Manifest& m) {
               std::erase_if(m.tensors, [](const auto& t) { return t.slot == store::Slot::exp_avg_sq; });
             }),
             "0 tensors of exp_avg_sq");
  expect_has(refuse([](Manifest& m) {
               std::erase_if(m.tensors, [&](const auto& t) { return t.uuid == m.slots[1].uuid; });
             }),
             "has no tensors");
}

TEST(Manifest, MissingShortAndForeignFilesAreNamed) {
  const test::TemporaryDirectory run;
  save(run / "c", std::move(SyntheticModel(DType::f32, test::synthetic_slots(2)).fill(1)));
  expect_has(refusal([&] { store::read_manifest(run / "absent"); }), "not a committed checkpoint");
  for (const std::string& name : names_in(run / "c")) {
    fs::copy(run / "c", run / "bad", fs::copy_options::recursive);
    fs::resize_file(run / "bad/" + name, fs::file_size(run / "bad/" + name) - 1);
    const std::string shortened = refusal([&] { store::read_manifest(run / "bad"); });
    if (name != "manifest.json") expect_has(shortened, name);
    fs::remove(run / "bad/" + name);
    const std::string missing = refusal([&] { store::read_manifest(run / "bad"); });
    expect_has(missing, name);
    fs::remove_all(run / "bad");
  }
}

TEST(Latest, SkipsWhatIsNotWholeAndSaysWhy) {
  const test::TemporaryDirectory run;
  EXPECT_EQ(store::latest_checkpoint(run.path()).directory, "");
  const SyntheticModel model = std::move(SyntheticModel(DType::f32, test::synthetic_slots(2)).fill(1));
  for (const std::int64_t step : {9, 10, 100, 110})
    save(store::checkpoint_directory(run.path(), step), model, step);
  EXPECT_EQ(store::latest_checkpoint(run.path()).step, 110);
  fs::remove(store::checkpoint_directory(run.path(), 110) + "/manifest.json");
  fs::create_directories(run / "checkpoints/step-00000200.partial");
  fs::create_directories(run / "checkpoints/step-00000150");
  fs::create_directories(run / "checkpoints/notes");
  fs::copy(store::checkpoint_directory(run.path(), 9), run / "checkpoints/step-00000140",
           fs::copy_options::recursive);
  const store::FoundCheckpoint found = store::latest_checkpoint(run.path());
  EXPECT_EQ(found.step, 100);
  EXPECT_EQ(found.directory, store::checkpoint_directory(run.path(), 100));
  ASSERT_EQ(found.skipped.size(), 3u);
  expect_has(found.skipped[0].reason, "not a committed checkpoint");
  expect_has(found.skipped[1].reason, "is of step 9");
  expect_has(found.skipped[2].directory, "step-00000110");

  const Manifest manifest = store::read_manifest(found.directory);
  test::flip_bit(found.directory + "/" + manifest.tensors[0].file,
                 static_cast<std::size_t>(manifest.tensors[0].offset_bytes), 3);
  EXPECT_EQ(store::latest_checkpoint(run.path()).step, 100);  // sizes still fit
  const store::FoundCheckpoint verified = store::latest_checkpoint(run.path(), true);
  EXPECT_EQ(verified.step, 10);
  expect_has(verified.skipped.back().reason, manifest.tensors[0].dataset);
}

TEST(Prune, KeepsTheNewestWholeOnesAndNeverCountsADamagedOne) {
  const test::TemporaryDirectory run;
  const SyntheticModel model = std::move(SyntheticModel(DType::f32, test::synthetic_slots(1)).fill(1));
  for (const std::int64_t step : {1, 2, 3, 4})
    save(store::checkpoint_directory(run.path(), step), model, step);
  fs::remove(store::checkpoint_directory(run.path(), 4) + "/router.h5");
  fs::create_directories(run / "checkpoints/step-00000005.partial");
  store::prune_checkpoints(run.path(), 2);
  EXPECT_EQ(names_in(run / "checkpoints"),
            (std::vector<std::string>{"step-00000002", "step-00000003", "step-00000004"}));
  EXPECT_THROW(store::prune_checkpoints(run.path(), 0), UsageError);
}

}  // namespace
}  // namespace moecollab
