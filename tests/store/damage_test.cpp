// Damage, death and a full disk, done for real: a flipped bit is found, a killed writer loses nothing that
// was acknowledged, a full disk leaves the checkpoint before it.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <random>

#include "moecollab/core/error.hpp"
#include "moecollab/store/checkpoint.hpp"
#include "moecollab/store/shard.hpp"
#include "support/synthetic_model.hpp"
#include "support/temporary_directory.hpp"

namespace moecollab {
namespace {

namespace fs = std::filesystem;
using test::SyntheticModel;

void save_step(const std::string& run, const SyntheticModel& model, std::int64_t step) {
  store::CheckpointMeta meta;
  meta.state.step = step;
  meta.tokenizer = "tokenizer";
  meta.config_ini = "config";
  store::save_checkpoint(store::checkpoint_directory(run, step), meta, model.params, model.slots,
                         Communicator::self());
}

TEST(Damage, ASingleFlippedBitInAnyFileIsFound) {
  const test::TemporaryDirectory run;
  const SyntheticModel model = std::move(SyntheticModel(DType::f32, test::synthetic_slots(2)).fill(1));
  save_step(run.path(), model, 1);
  const std::string directory = store::checkpoint_directory(run.path(), 1);
  EXPECT_NO_THROW(store::verify_checkpoint(directory));
  std::mt19937_64 engine(20250101);
  int files = 0;
  for (const auto& item : fs::directory_iterator(directory)) {
    const std::string path = item.path().string();
    ++files;
    for (int i = 0; i < 200; ++i) {
      const auto byte = static_cast<std::size_t>(engine() % item.file_size());
      const int bit = static_cast<int>(engine() % 8);
      test::flip_bit(path, byte, bit);
      EXPECT_THROW(store::verify_checkpoint(directory), CheckpointError)
          << path << " byte " << byte << " bit " << bit;
      test::flip_bit(path, byte, bit);
    }
  }
  EXPECT_EQ(files, 7);
  EXPECT_NO_THROW(store::verify_checkpoint(directory));
}

TEST(Damage, AFlippedBitOfATensorIsNotLoaded) {
  const test::TemporaryDirectory run;
  const auto experts = test::synthetic_slots(2);
  const SyntheticModel saved = std::move(SyntheticModel(DType::f32, experts).fill(1));
  save_step(run.path(), saved, 1);
  const std::string directory = store::checkpoint_directory(run.path(), 1);
  const store::Manifest manifest = store::read_manifest(directory);
  std::mt19937_64 engine(7);
  for (const store::TensorEntry& tensor : manifest.tensors) {
    const auto byte = static_cast<std::size_t>(tensor.offset_bytes) +
                      engine() % static_cast<std::size_t>(tensor.size_bytes());
    const int bit = static_cast<int>(engine() % 8);
    test::flip_bit(directory + "/" + tensor.file, byte, bit);
    SyntheticModel loaded(DType::f32, experts);
    try {
      store::load_blocks(directory, manifest, loaded.params);
      ADD_FAILURE() << tensor.dataset << " was loaded damaged";
    } catch (const CheckpointError& error) {
      EXPECT_NE(std::string(error.what()).find(tensor.dataset), std::string::npos) << error.what();
    }
    test::flip_bit(directory + "/" + tensor.file, byte, bit);
  }
}

// Microseconds of one save here and now, so that kills fall into saves on any machine.
std::uint64_t save_us(const SyntheticModel& model) {
  const test::TemporaryDirectory run;
  const auto begin = std::chrono::steady_clock::now();
  for (std::int64_t step = 1; step <= 3; ++step) save_step(run.path(), model, step);
  const auto spent = std::chrono::steady_clock::now() - begin;
  return 1000 +
         static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(spent).count()) / 3;
}

// A child saves steps without end and says after each one that it is saved; it is killed at a random time.
// What it said must be true, a restart goes on from there, and nothing needs a hand.
TEST(Damage, AKilledWriterLosesNothingThatWasAcknowledged) {
  const test::TemporaryDirectory run;
  const auto experts = test::synthetic_slots(3);
  SyntheticModel model(DType::f32, experts);
  model.fill(1);
  Block& trunk = model.params.block(model.params.blocks()[0].id);
  const std::uint64_t usual_us = save_us(model);
  std::mt19937_64 engine(42);
  std::int64_t acknowledged = 0;
  int interrupted = 0;
  for (int kill_number = 0; kill_number < 30; ++kill_number) {
    int pipe_ends[2];
    ASSERT_EQ(::pipe(pipe_ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      for (std::int64_t step = acknowledged + 1;; ++step) {
        trunk.master().as<float>()[0] = static_cast<float>(step);
        trunk.optimizer_step = step;
        save_step(run.path(), model, step);
        if (::write(pipe_ends[1], &step, sizeof step) != sizeof step) ::_exit(1);
        store::prune_checkpoints(run.path(), 2);
      }
    }
    ::close(pipe_ends[1]);
    ::usleep(static_cast<useconds_t>(engine() % (4 * usual_us)));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    for (std::int64_t step = 0; ::read(pipe_ends[0], &step, sizeof step) == sizeof step;) acknowledged = step;
    ::close(pipe_ends[0]);
    for (const auto& item : fs::directory_iterator(run / "checkpoints"))
      interrupted += item.path().extension() == ".partial";

    const store::FoundCheckpoint found = store::latest_checkpoint(run.path(), true);
    EXPECT_TRUE(found.skipped.empty());
    if (found.directory.empty() && acknowledged == 0) continue;  // killed before the first was saved
    ASSERT_GE(found.step, acknowledged);
    SyntheticModel loaded(DType::f32, experts);
    store::load_blocks(found.directory, store::read_manifest(found.directory), loaded.params);
    EXPECT_EQ(loaded.params.blocks()[0].master().as<float>()[0], static_cast<float>(found.step));
    EXPECT_EQ(loaded.params.blocks()[0].optimizer_step, found.step);
  }
  EXPECT_GT(acknowledged, 0);
  EXPECT_GT(interrupted, 0) << "no kill fell into a save: the test proved nothing";
}

// The same step saved again and again, killed: always one of the two, whole.
TEST(Damage, AKilledReplacementLeavesOneOrTheOther) {
  const test::TemporaryDirectory run;
  SyntheticModel model(DType::f32, test::synthetic_slots(2));
  model.fill(1);
  save_step(run.path(), model, 5);
  const std::uint64_t usual_us = save_us(model);
  std::mt19937_64 engine(43);
  for (int kill_number = 0; kill_number < 15; ++kill_number) {
    const pid_t child = ::fork();
    if (child == 0)
      for (;;) save_step(run.path(), model, 5);
    ::usleep(static_cast<useconds_t>(engine() % (3 * usual_us)));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    EXPECT_EQ(store::latest_checkpoint(run.path(), true).step, 5);
  }
}

// The child's exit status after saving step 2 beside step 1: 0 saved, 1 refused as it should be.
int save_in_child(const std::string& run, const SyntheticModel& model, rlim_t file_limit) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{file_limit, file_limit};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    int code = 2;
    try {
      save_step(run, model, 2);
      code = 0;
    } catch (const IoError&) {
      code = 1;
    } catch (...) {
    }
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void expect_only_step_1(const std::string& run) {
  EXPECT_EQ(store::latest_checkpoint(run, true).step, 1);
  for (const auto& item : fs::recursive_directory_iterator(run)) {
    EXPECT_EQ(item.path().string().find(".partial"), std::string::npos) << item.path();
    EXPECT_NE(item.path().extension(), ".tmp") << item.path();
  }
}

TEST(Damage, AFileThatCannotGrowLeavesTheCheckpointBeforeIt) {
  const test::TemporaryDirectory run;
  const SyntheticModel model = std::move(SyntheticModel(DType::f32, test::synthetic_slots(2)).fill(1));
  save_step(run.path(), model, 1);
  int refused = 0;
  for (const rlim_t limit : {0, 1, 5, 100, 2000, 3000, 4000, 6000, 8000, 12000}) {
    const int code = save_in_child(run.path(), model, limit);
    if (code == 0) continue;
    EXPECT_EQ(code, 1) << "limit " << limit;
    ++refused;
    expect_only_step_1(run.path());
  }
  EXPECT_GE(refused, 5);
  EXPECT_EQ(save_in_child(run.path(), model, RLIM_INFINITY), 0);
  EXPECT_EQ(store::latest_checkpoint(run.path(), true).step, 2);
}

TEST(Damage, AFullDiskLeavesTheCheckpointBeforeIt) {
  const test::TemporaryDirectory run;
  const SyntheticModel model = std::move(SyntheticModel(DType::f32, test::synthetic_slots(2)).fill(1));
  if (::mount("none", run.path().c_str(), "tmpfs", 0, "size=16k") != 0)
    GTEST_SKIP() << "needs the right to mount a tmpfs";
  ::umount(run.path().c_str());
  int refused = 0, saved = 0;
  for (int pages = 1; pages <= 60; pages += 3) {
    ASSERT_EQ(::mount("none", run.path().c_str(), "tmpfs", 0, "size=4m"), 0);
    save_step(run.path(), model, 1);
    const std::string remount = "size=" + std::to_string(100 + 4 * pages) + "k";
    if (::mount("none", run.path().c_str(), "tmpfs", MS_REMOUNT, remount.c_str()) == 0) {
      const int code = save_in_child(run.path(), model, RLIM_INFINITY);
      if (code == 0) {
        ++saved;
        EXPECT_EQ(store::latest_checkpoint(run.path(), true).step, 2);
      } else {
        EXPECT_EQ(code, 1) << remount;
        ++refused;
        expect_only_step_1(run.path());
      }
    }
    ASSERT_EQ(::umount(run.path().c_str()), 0);
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(saved, 0);
}

}  // namespace
}  // namespace moecollab
