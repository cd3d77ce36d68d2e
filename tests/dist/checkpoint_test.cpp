// Saved by all ranks of a job, loaded by any number: every expert once, and a failure on one rank is all
// ranks'.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>

#include "moecollab/core/error.hpp"
#include "moecollab/store/checkpoint.hpp"
#include "moecollab/store/shard.hpp"
#include "support/synthetic_model.hpp"
#include "support/temporary_directory.hpp"

namespace moecollab {
namespace {

namespace fs = std::filesystem;
using test::SyntheticModel;

class DistCheckpoint : public testing::Test {
 protected:
  // One directory for the job, made and removed by rank 0.
  void SetUp() override {
    if (world_.rank() == 0) temporary_ = std::make_unique<test::TemporaryDirectory>();
    run_ = world_.broadcast(temporary_ != nullptr ? temporary_->path() : std::string(), 0);
  }
  void TearDown() override { world_.barrier(); }

  store::Digest save(const std::string& directory, const SyntheticModel& model, bool writes_experts = true) {
    store::CheckpointMeta meta;
    meta.state.step = 4;
    meta.tokenizer = "tokenizer";
    meta.config_ini = "config";
    return store::save_checkpoint(directory, meta, model.params, model.slots, world_,
                                  {.writes_experts = writes_experts});
  }

  // Every rank plays every rank of jobs of other sizes.
  void expect_loads_everywhere(const std::string& directory, DType dtype,
                               const std::vector<ExpertSlot>& experts, std::uint64_t seed) {
    const store::Manifest manifest = store::read_manifest(directory);
    const SyntheticModel whole = std::move(SyntheticModel(dtype, experts).fill(seed));
    for (std::int32_t ep = 1; ep <= world_.size() + 1; ++ep) {
      std::multiset<Uuid> seen;
      for (std::int32_t rank = 0; rank < ep; ++rank) {
        SyntheticModel loaded(dtype, manifest.slots, ep, rank);
        store::load_blocks(directory, manifest, loaded.params);
        EXPECT_EQ(test::difference(loaded, whole), "") << "rank " << rank << " of " << ep;
        for (const Block& block : loaded.params.blocks())
          if (block.kind == BlockKind::expert) seen.insert(block.uuid);
      }
      EXPECT_EQ(seen.size(), experts.size());
      EXPECT_EQ(std::set<Uuid>(seen.begin(), seen.end()).size(), experts.size());
    }
  }

  void expect_nothing_left_behind(const std::string& directory) {
    EXPECT_FALSE(fs::exists(directory + ".partial"));
    world_.barrier();
  }

  const Communicator world_ = Communicator::world();
  std::unique_ptr<test::TemporaryDirectory> temporary_;
  std::string run_;
};

TEST_F(DistCheckpoint, SavedByAllLoadedByAnyNumber) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto experts = test::synthetic_slots(5);
    const SyntheticModel mine =
        std::move(SyntheticModel(dtype, experts, world_.size(), world_.rank()).fill(3));
    const std::string directory = run_ + "/" + to_string(dtype);
    const store::Digest digest = save(directory, mine);
    EXPECT_EQ(store::read_manifest(directory).digest, digest);
    expect_loads_everywhere(directory, dtype, experts, 3);
    EXPECT_NO_THROW(store::verify_checkpoint(directory));
    // Trunk shards: one per rank, none empty while there are parameters for all.
    int trunk_files = 0;
    for (const store::FileEntry& file : store::read_manifest(directory).files)
      trunk_files += file.name.starts_with("trunk-");
    EXPECT_EQ(trunk_files, std::min<int>(world_.size(), static_cast<int>(test::trunk_specs().size())));
    expect_nothing_left_behind(directory);
  }
}

TEST_F(DistCheckpoint, ReplicasWriteTheirExpertsOnce) {
  if (world_.size() % 2 != 0) GTEST_SKIP() << "two replicas need an even number of ranks";
  const std::int32_t ep = world_.size() / 2;
  const auto experts = test::synthetic_slots(3);
  const SyntheticModel mine = std::move(SyntheticModel(DType::f32, experts, ep, world_.rank() % ep).fill(9));
  save(run_ + "/c", mine, world_.rank() < ep);
  expect_loads_everywhere(run_ + "/c", DType::f32, experts, 9);
  expect_nothing_left_behind(run_ + "/c");
  // Both replicas writing would list each expert twice.
  EXPECT_THROW(save(run_ + "/double", mine, true), CheckpointError);
  world_.barrier();
  EXPECT_FALSE(fs::exists(run_ + "/double"));
  expect_nothing_left_behind(run_ + "/double");
}

TEST_F(DistCheckpoint, AMissingExpertFailsOnAllRanks) {
  const auto experts = test::synthetic_slots(5);
  SyntheticModel mine(DType::f32, experts, world_.size(), world_.rank());
  mine.fill(1);
  save(run_ + "/c", mine);
  const std::string before = test::slurp(run_ + "/c/manifest.json");
  world_.barrier();
  if (const Block* lost = mine.params.find_block(BlockKind::expert, experts[1].uuid))
    mine.params.remove_block(lost->id);
  EXPECT_THROW(save(run_ + "/c", mine), CheckpointError);
  EXPECT_EQ(test::slurp(run_ + "/c/manifest.json"), before);
  expect_nothing_left_behind(run_ + "/c");
}

// One rank cannot write: each rank in turn.
TEST_F(DistCheckpoint, AFullDiskOnOneRankFailsOnAllAndKeepsTheOld) {
  const auto experts = test::synthetic_slots(5);
  const SyntheticModel mine =
      std::move(SyntheticModel(DType::f32, experts, world_.size(), world_.rank()).fill(1));
  save(run_ + "/c", mine);
  const std::string before = test::slurp(run_ + "/c/manifest.json");
  world_.barrier();
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit usual{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &usual), 0);
  const int writers =
      std::min(world_.size(), 5);  // of five experts and five tensors of the trunk; others write nothing
  for (int full = 0; full < writers; ++full) {
    const rlimit small{500, usual.rlim_max};
    if (world_.rank() == full) ::setrlimit(RLIMIT_FSIZE, &small);
    std::string message;
    try {
      save(run_ + "/c", mine);
    } catch (const IoError& error) {
      message = error.what();
    }
    ::setrlimit(RLIMIT_FSIZE, &usual);
    EXPECT_NE(message.find("(rank " + std::to_string(full) + ")"), std::string::npos) << message;
    EXPECT_EQ(test::slurp(run_ + "/c/manifest.json"), before);
    expect_nothing_left_behind(run_ + "/c");
  }
  EXPECT_NO_THROW(store::read_manifest(run_ + "/c"));
  save(run_ + "/c", mine);  // and the next save works
  expect_loads_everywhere(run_ + "/c", DType::f32, experts, 1);
}

}  // namespace
}  // namespace moecollab
