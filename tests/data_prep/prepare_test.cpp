// The whole program: what it writes, and what it leaves when it fails.
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <algorithm>
#include <filesystem>

#include "data_prep/run_program.hpp"
#include "moecollab/data/dataset.hpp"

namespace moecollab::prepare {
namespace {

using data::Dataset;
using data::Split;
using test::TemporaryDirectory;

class PrepareTest : public ::testing::Test {
 protected:
  std::string file(const std::string& name, const std::string& content) {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return folder_ / name;
  }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_.path()))
      names.push_back(std::filesystem::relative(entry.path(), folder_.path()).string());
    std::ranges::sort(names);
    return names;
  }
  // Some text of about `bytes`, every document different.
  std::string text(std::size_t bytes, const std::string& word) const {
    std::string made;
    for (int i = 0; made.size() < bytes; ++i)
      made += word + " number " + std::to_string(i) + " stands beside its neighbour\n  and ends\n\n";
    return made;
  }
  TemporaryDirectory folder_;
};

TEST_F(PrepareTest, AContributorTakesTheTokenizerOfTheAnchor) {
  const std::string general = file("general.txt", text(60000, "oak"));
  const std::string python =
      file("m.jsonl", "{\"text\": \"def f():\\n\\treturn 1\\n\"}\n{\"text\": \"x = 2\"}\n");
  auto result = prepare_program({"-i", "general=" + general, "-o", folder_ / "a.h5", "-t", "bpe:400"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_NE(result.output.find("general"), std::string::npos);
  result = prepare_program({"-i", "python=" + python, "-o", folder_ / "c.h5", "-t", folder_ / "a.h5"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const Dataset anchor = Dataset::open(folder_ / "a.h5");
  const Dataset contributor = Dataset::open(folder_ / "c.h5");
  contributor.check_tokenizer(anchor.tokenizer().hash());
  EXPECT_GT(anchor.vocab_size(), 300);  // the text is too poor for all 400
  EXPECT_LE(anchor.vocab_size(), 400);
  EXPECT_GT(anchor.num_documents(Split::validation), 0);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(contributor.num_tokens(Split::train)));
  contributor.read_tokens(Split::train, 0, ids);
  EXPECT_EQ(contributor.tokenizer().decode(ids), "def f():\n\treturn 1\nx = 2");

  // The same tokenizer from a checkpoint's file, its folder, and as a bare model.
  std::filesystem::create_directory(folder_ / "checkpoint");
  const auto bytes = anchor.tokenizer().serialise();
  file("checkpoint/tokenizer.bin", {bytes.begin(), bytes.end()});
  file("t.model", anchor.tokenizer().model());
  // And from a run: its newest checkpoint that has a manifest.
  for (const char* step : {"step-00000002", "step-00000010", "step-00000011"})
    std::filesystem::create_directories(folder_ / (std::string("run/checkpoints/") + step));
  file("run/checkpoints/step-00000002/tokenizer.bin", "damaged");
  file("run/checkpoints/step-00000002/manifest.json", "{}");
  file("run/checkpoints/step-00000010/tokenizer.bin", {bytes.begin(), bytes.end()});
  file("run/checkpoints/step-00000010/manifest.json", "{}");
  file("run/checkpoints/step-00000011/tokenizer.bin", "half");
  for (const char* from : {"checkpoint", "checkpoint/tokenizer.bin", "t.model", "run"}) {
    result = prepare_program({"-i", "python=" + python, "-o", folder_ / "again.h5", "-t", folder_ / from});
    ASSERT_EQ(result.exit_code, 0) << result.errors;
    EXPECT_EQ(test::slurp(folder_ / "again.h5"), test::slurp(folder_ / "c.h5"));
  }
}

TEST_F(PrepareTest, ATextIsNeverOverwritten) {
  const std::string content = text(1000, "oak");
  const std::string input = file("oak.txt", content), other = file("notes.txt", "mine\n");
  for (const std::string& output : {input, other, folder_ / "./oak.txt"}) {
    const auto result = prepare_program({"-i", "a=" + input, "-o", output, "-t", "bytes"});
    EXPECT_EQ(result.exit_code, 64) << result.errors;
    EXPECT_NE(result.errors.find("--output"), std::string::npos) << result.errors;
  }
  EXPECT_EQ(test::slurp(input), content);
  EXPECT_EQ(test::slurp(other), "mine\n");
}

TEST_F(PrepareTest, TheSameInputGivesTheSameBits) {
  const std::string one = file("1.txt", text(5000000, "oak"));  // more than one block
  const std::string two = file("2.tsv", "l\ttext one\nk\ttext two\n");
  std::string first;
  for (const char* threads : {"1", "2", "5"}) {
    const auto result = prepare_program({"-i", "a=" + one, "-o", folder_ / "t.h5", "-t", "bpe:400",
                                         "--threads", threads, "--tokenizer-sample-bytes", "100000"});
    ASSERT_EQ(result.exit_code, 0) << result.errors;
    const std::string bits = test::slurp(folder_ / "t.h5");
    if (first.empty()) first = bits;
    EXPECT_EQ(bits, first) << threads << " threads";
  }
}

TEST_F(PrepareTest, ManyInputsFoldersAndPatterns) {
  std::filesystem::create_directories(folder_ / "code/deep");
  file("code/b.py", "b = 1\n\nb = 2\n");
  file("code/deep/a.py", "a = 1\n");
  file("n1.txt", "one\n\ntwo\n");
  file("n2.txt", "three\n");
  const auto result =
      prepare_program({"code=" + (folder_ / "code") + ":file", "notes=" + (folder_ / "n?.txt"), "-o",
                       folder_ / "t.h5", "-t", "bytes", "--validation-fraction", "0"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const Dataset dataset = Dataset::open(folder_ / "t.h5");
  ASSERT_EQ(dataset.domains().size(), 2u);
  EXPECT_EQ(dataset.domain_documents(Split::train, 0).size(), 2);
  EXPECT_EQ(dataset.domain_documents(Split::train, 1).size(), 3);
}

TEST_F(PrepareTest, EachErrorHasItsExitCodeAndLeavesNothing) {
  const std::string good = file("good.txt", text(3000, "oak"));
  const std::string bad = file("bad.txt", text(3000, "oak") + "caf\xe9\n");
  const std::string bad_line =
      ":" + std::to_string(1 + std::ranges::count(text(3000, "oak"), '\n')) + ": byte 4 ";
  const std::string labels = file("labels.txt", "up\ndown\n");
  const std::string twice = file("twice.txt", "up\nup\n");
  const std::string votes = file("votes.tsv", "up\ta\nsideways\tb\n");
  const std::string json = file("j.jsonl", "{\"text\": \"a\"}\n{\"body\": \"b\"}\n");
  const std::string blank = file("blank.txt", " \n\n");
  const std::string empty = file("empty.txt", "");
  const std::string out = folder_ / "t.h5";
  const auto before = files();
  struct Case {
    std::vector<std::string> arguments;
    int exit_code;
    std::string named;
  };
  const std::vector<Case> cases = {
      {{"-o", out}, 64, "--input is missing"},
      {{"-i", "a=" + good}, 64, "--output is missing"},
      {{"-i", good, "-o", out}, 64, "domain=path"},
      {{"-i", "a=" + good + ":xml", "-o", out}, 64, "unknown format \"xml\""},
      {{"-i", "a=" + good, "-o", out, "--no-such"}, 64, "--help"},
      {{"-i", "a=" + good, "-o", out, "-t", "bpe:12"}, 64, "at least 384"},
      {{"-i", "a=" + good, "-o", out, "-t", "bpe:many"}, 64, "bpe:4096"},
      {{"-i", "a=" + good, "-o", out, "-t", "bytes", "--validation-fraction", "1"}, 64, "[0, 1)"},
      {{"-i", "a=" + good, "-o", out, "-t", folder_ / "none"}, 65, "none"},
      {{"-i", "a=" + good, "-o", out, "-t", good}, 65, good},
      {{"-i", "a=" + folder_ / "none.txt", "-o", out, "-t", "bytes"}, 65, "none.txt"},
      {{"-i", "a=" + folder_ / "*.xyz", "-o", out, "-t", "bytes"}, 65, "no file matches"},
      {{"-i", "a=" + good, "-i", "a=" + bad, "-o", out, "-t", "bytes"},
       65,
       bad + bad_line + "of the line (0xe9)"},
      {{"-i", "a=" + bad, "-o", out, "-t", "bpe:400"}, 65, bad + bad_line},
      {{"-i", "a=" + empty, "-o", out, "-t", "bytes"}, 65, "the file is empty"},
      {{"-i", "a=" + blank, "-o", out, "-t", "bytes"}, 65, "only white space"},
      {{"-i", "a=" + json, "-o", out, "-t", "bytes"}, 65, json + ":2: field \"text\" is missing"},
      {{"-i", "a=" + votes, "-o", out, "-t", "bytes", "--labels", labels},
       65,
       votes + ":2: label \"sideways\""},
      {{"-i", "a=" + votes, "-o", out, "-t", "bytes", "--labels", twice}, 65, twice + ":2"},
      {{"-i", "a=" + votes, "-i", "a=" + good, "-o", out, "-t", "bytes"},
       65,
       good + ":1: a document lacks a label"},
      {{"-i", "a=" + good, "-o", folder_ / "no/such/t.h5", "-t", "bytes"}, 75, "no/such"},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.named);
    const ProgramResult result = prepare_program(each.arguments);
    EXPECT_EQ(result.exit_code, each.exit_code) << result.errors;
    EXPECT_NE(result.errors.find(each.named), std::string::npos) << result.errors;
    EXPECT_EQ(files(), before);
  }
}

TEST_F(PrepareTest, AFileLimitFailsLikeAFullDisk) {
  const std::string input = file("big.txt", text(4 << 20, "oak"));
  const auto before = files();
  for (const rlim_t limit : {rlim_t{1} << 20, rlim_t{8} << 20}) {
    ProgramLimits limits;
    limits.file_bytes = limit;
    const auto result =
        prepare_program({"-q", "-i", "a=" + input, "-o", folder_ / "t.h5", "-t", "bytes"}, limits);
    EXPECT_EQ(result.exit_code, 75) << result.errors;
    EXPECT_NE(result.errors.find("t.h5"), std::string::npos) << result.errors;
    EXPECT_EQ(files(), before);
  }
}

TEST_F(PrepareTest, AFullDiskLeavesNothing) {
  std::filesystem::create_directory(folder_ / "small");
  if (::mount("tmpfs", (folder_ / "small").c_str(), "tmpfs", 0, "size=10m") != 0)
    GTEST_SKIP() << "no right to mount a small file system here";
  // Tokens take two bytes each: the parts alone overflow with the first size, parts and token file with the
  // second.
  for (const std::size_t bytes : {std::size_t{6} << 20, std::size_t{3} << 20}) {
    const std::string input = file("big.txt", text(bytes, "oak"));
    const auto result =
        prepare_program({"-q", "-i", "a=" + input, "-o", folder_ / "small/t.h5", "-t", "bytes"});
    EXPECT_EQ(result.exit_code, 75) << result.errors;
    EXPECT_NE(result.errors.find("No space left"), std::string::npos) << result.errors;
    EXPECT_TRUE(std::filesystem::is_empty(folder_ / "small"));
  }
  ASSERT_EQ(::umount((folder_ / "small").c_str()), 0);
}

TEST_F(PrepareTest, AnInterruptLeavesNothing) {
  const std::string input = file("big.txt", text(60 << 20, "oak"));
  const auto before = files();
  ProgramLimits limits;
  limits.interrupt_when_exists = folder_ / "t.h5.parts";
  const auto result =
      prepare_program({"-q", "-i", "a=" + input, "-o", folder_ / "t.h5", "-t", "bytes"}, limits);
  EXPECT_EQ(result.exit_code, 75) << result.errors;
  EXPECT_NE(result.errors.find("interrupted"), std::string::npos) << result.errors;
  EXPECT_EQ(files(), before);
}

// Sixteen times the input, the same memory within what one more buffer of each kind takes.
TEST_F(PrepareTest, MemoryDoesNotGrowWithTheInput) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer keeps freed memory";
#endif
  const std::string small = file("small.txt", text(6 << 20, "oak"));
  const std::string large = file("large.txt", text(96 << 20, "oak"));
  const auto peak_mib = [&](const std::string& input) {
    const auto result = prepare_program({"-q", "-i", "a=" + input, "-o", folder_ / "t.h5", "-t", "bytes"});
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return result.peak_kib / 1024;
  };
  const long before = peak_mib(small);
  EXPECT_LE(peak_mib(large), before + 16);
}

TEST_F(PrepareTest, H5pyReadsIt) {
  if (!test::has_h5py()) GTEST_SKIP() << "python3-h5py is not installed";
  const std::string one =
      file("1.jsonl", "{\"text\": \"sun\", \"y\": \"hot\"}\n{\"text\": \"ice\", \"y\": \"cold\"}\n");
  const auto result = prepare_program({"-i", "sky=" + one, "-o", folder_ / "t.h5", "-t", "bytes",
                                       "--label-field", "y", "--validation-fraction", "0"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(test::run_python("import h5py\nf = h5py.File('" + (folder_ / "t.h5") + R"(')
t = f['train']
assert t['tokens'].dtype == 'uint16' and list(t['tokens']) == [*b'sun', 257, *b'ice', 257]
assert list(t['doc_offsets']) == [0, 4, 8] and t['doc_offsets'].dtype == 'int64'
assert list(t['doc_domain']) == [0, 0] and list(t['doc_label']) == [1, 0]
assert [d.decode() for d in f['domains']] == ['sky'] and [d.decode() for d in f['labels']] == ['cold', 'hot']
assert f.attrs['format'].decode() == 'moecollab-tokens' and f.attrs['format_version'] == 1
assert t.attrs['sky.documents'] == 2 and t.attrs['sky.tokens'] == 8 and t.attrs['sky.bytes'] == 6
assert len(f['token_bytes']) == f.attrs['vocab_size'] == 259 and sum(f['token_bytes']) == 256
assert len(f['sources/xxh3_128'][0]) == 32 and f['sources/path'][0].endswith(b'1.jsonl')
assert f['tokenizer'].attrs['kind'].decode() == 'bytes' and len(f.attrs['tokenizer_hash']) == 32
)"),
            0);
}

TEST_F(PrepareTest, HelpShowsEveryFormatAndExample) {
  const auto result = prepare_program({"--help"});
  EXPECT_EQ(result.exit_code, 0);
  for (const char* word : {"jsonl", "--tokenizer", "examples:", "exit codes"})
    EXPECT_NE(result.output.find(word), std::string::npos) << word;
}

}  // namespace
}  // namespace moecollab::prepare
