// Bits come back; failures are told; nothing half-written is ever seen under the final name.
#include "moecollab/h5/file.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "moecollab/core/error.hpp"

namespace moecollab {
namespace {

namespace fs = std::filesystem;

class H5File : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "moecollab-h5-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { fs::remove_all(directory_); }
  std::string path(const std::string& name) const { return (directory_ / name).string(); }
  fs::path directory_;
};

Tensor random_bytes(DType dtype, const Shape& shape, unsigned seed) {
  Tensor tensor(dtype, shape);
  std::mt19937 engine(seed);
  auto* bytes = static_cast<unsigned char*>(tensor.view().data);
  for (std::int64_t i = 0; i < tensor.size_bytes(); ++i) bytes[i] = static_cast<unsigned char>(engine());
  return tensor;
}

void expect_same_bits(const Tensor& a, const Tensor& b) {
  ASSERT_EQ(a.dtype(), b.dtype());
  ASSERT_EQ(a.shape(), b.shape());
  EXPECT_EQ(std::memcmp(a.view().data, b.view().data, static_cast<std::size_t>(a.size_bytes())), 0);
}

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

int run_python(const std::string& script) {
  return std::system(("/usr/bin/python3 -c \"" + script + "\"").c_str());
}
bool has_h5py() { return run_python("import h5py") == 0; }

constexpr DType kAll[] = {DType::f32, DType::bf16, DType::f64, DType::i32, DType::i64, DType::u8, DType::u16};

TEST_F(H5File, BitsOfEveryTypeComeBackWhole) {
  {
    h5::File file = h5::File::create_new(path("a.h5"));
    unsigned seed = 1;
    for (const DType dtype : kAll)
      file.write(std::string("deep/er/") + to_string(dtype), random_bytes(dtype, {3, 5, 2}, seed++).view());
    file.write("scalar", random_bytes(DType::f64, {}, 90).view());
    file.write("empty", Tensor(DType::f32, {0, 4}).view());
    file.commit();
  }
  const h5::File file = h5::File::open_read(path("a.h5"));
  unsigned seed = 1;
  for (const DType dtype : kAll)
    expect_same_bits(file.read(std::string("/deep/er/") + to_string(dtype)),
                     random_bytes(dtype, {3, 5, 2}, seed++));
  expect_same_bits(file.read("scalar"), random_bytes(DType::f64, {}, 90));
  EXPECT_EQ(file.read("empty").shape(), (Shape{0, 4}));
  EXPECT_EQ(file.info("empty").offset_bytes, -1);
  EXPECT_EQ(file.list("/"), (std::vector<std::string>{"deep", "empty", "scalar"}));
  EXPECT_TRUE(file.is_group("deep/er"));
  EXPECT_FALSE(file.is_group("scalar"));
  EXPECT_FALSE(file.contains("deep/absent"));
}

TEST_F(H5File, BytesLieAtTheOffsetThatInfoGives) {
  const Tensor tensor = random_bytes(DType::bf16, {7, 3}, 5);
  {
    h5::File file = h5::File::create_new(path("a.h5"));
    file.write("before", random_bytes(DType::u8, {13}, 4).view());
    file.write("it", tensor.view());
    file.commit();
  }
  const auto offset = static_cast<std::size_t>(h5::File::open_read(path("a.h5")).info("it").offset_bytes);
  const std::string bytes = slurp(path("a.h5"));
  EXPECT_EQ(std::memcmp(bytes.data() + offset, tensor.view().data, 42), 0);
}

TEST_F(H5File, RowsStreamInAndOut) {
  const Tensor all = random_bytes(DType::u16, {1000, 3}, 6);
  {
    h5::File file = h5::File::create_new(path("a.h5"));
    file.create_dataset("tokens", DType::u16, {1000, 3});
    file.write_rows("tokens", 0, all.view().rows(0, 400));
    file.write_rows("tokens", 700, all.view().rows(700, 1000));
    file.write_rows("tokens", 400, all.view().rows(400, 700));
    file.commit();
  }
  const h5::File file = h5::File::open_read(path("a.h5"));
  expect_same_bits(file.read("tokens"), all);
  Tensor part(DType::u16, {17, 3});
  file.read_rows("tokens", 390, part.view());
  EXPECT_EQ(std::memcmp(part.view().data, all.view().rows(390, 407).data, 17 * 6), 0);
  EXPECT_THROW(file.read_rows("tokens", 984, part.view()), DataError);
  Tensor wrong(DType::i32, {17, 3});
  EXPECT_THROW(file.read_rows("tokens", 0, wrong.view()), DataError);
}

TEST_F(H5File, StringsAndAttributes) {
  const std::vector<std::string> domains{"kjv", "", "gr\xc3\xbc\xc3\x9f"};
  {
    h5::File file = h5::File::create_new(path("a.h5"));
    file.write_strings("domains", domains);
    file.write_strings("none", std::vector<std::string>{});
    file.create_group("group");
    file.set_attribute("", "format", std::string("moecollab"));
    file.set_attribute("group", "empty", std::string());
    file.set_attribute("group", "large", std::string(100000, 'x'));
    file.set_attribute("domains", "count", std::int64_t{-9007199254740993});
    file.set_attribute("/", "ratio", 0.1);
    EXPECT_THROW(file.set_attribute("/", "ratio", 0.2), IoError);
    EXPECT_THROW(file.commit(), IoError);
  }
  EXPECT_FALSE(fs::exists(path("a.h5")));
  {
    h5::File file = h5::File::create_new(path("a.h5"));
    file.write_strings("domains", domains);
    file.write_strings("none", std::vector<std::string>{});
    file.create_group("group");
    file.set_attribute("", "format", std::string("moecollab"));
    file.set_attribute("group", "empty", std::string());
    file.set_attribute("group", "large", std::string(100000, 'x'));
    file.set_attribute("domains", "count", std::int64_t{-9007199254740993});
    file.set_attribute("/", "ratio", 0.1);
    file.commit();
  }
  const h5::File file = h5::File::open_read(path("a.h5"));
  EXPECT_EQ(file.read_strings("domains"), domains);
  EXPECT_TRUE(file.read_strings("none").empty());
  EXPECT_EQ(file.attribute_string("", "format"), "moecollab");
  EXPECT_EQ(file.attribute_string("group", "empty"), "");
  EXPECT_EQ(file.attribute_string("group", "large"), std::string(100000, 'x'));
  EXPECT_EQ(file.attribute_i64("domains", "count"), -9007199254740993);
  EXPECT_EQ(file.attribute_f64("", "ratio"), 0.1);
  EXPECT_FALSE(file.has_attribute("", "absent"));
  EXPECT_THROW(file.attribute_i64("", "absent"), DataError);
  EXPECT_THROW(file.attribute_i64("", "ratio"), DataError);
  EXPECT_THROW(file.attribute_string("", "ratio"), DataError);
}

TEST_F(H5File, SameContentGivesTheSameBytes) {
  const auto make = [&](const std::string& name) {
    h5::File file = h5::File::create_new(path(name));
    file.write("g/of/a", random_bytes(DType::f32, {100, 7}, 1).view());
    file.write_strings("s", std::vector<std::string>{"x", "yy"});
    file.set_attribute("g", "n", std::int64_t{1});
    file.commit();
    return slurp(path(name));
  };
  const std::string first = make("a.h5");
  ::sleep(1);  // past the resolution of the times that HDF5 would note
  EXPECT_EQ(first, make("b.h5"));
}

TEST_F(H5File, NothingIsSeenBeforeCommitAndNothingStaysWithout) {
  {
    h5::File file = h5::File::create_new(path("a.h5"));
    file.write("x", random_bytes(DType::f32, {4}, 1).view());
    EXPECT_FALSE(fs::exists(path("a.h5")));
  }
  EXPECT_TRUE(fs::is_empty(directory_));
  {
    h5::File file = h5::File::create_new(path("a.h5"));
    file.create_dataset("rows", DType::f32, {4, 2});
    file.write_rows("rows", 0, random_bytes(DType::f32, {3, 2}, 1).view());
    EXPECT_THROW(file.commit(), IoError);  // the fourth row is missing
  }
  EXPECT_TRUE(fs::is_empty(directory_));
}

TEST_F(H5File, WrongRowsAreRefusedAndLatched) {
  h5::File file = h5::File::create_new(path("a.h5"));
  file.create_dataset("rows", DType::f32, {4, 2});
  EXPECT_THROW(file.write_rows("rows", 3, random_bytes(DType::f32, {2, 2}, 1).view()), IoError);
  try {
    file.write("other", random_bytes(DType::f32, {2}, 1).view());
    FAIL() << "a write after a failed write";
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("earlier write failed"), std::string::npos) << error.what();
  }
  EXPECT_THROW(file.commit(), IoError);
}

// In a child, because the limit is the process's: a disk that fills up in the middle of a dataset.
TEST_F(H5File, FullDiskIsReportedByCommitAndKeepsTheOldFile) {
  {
    h5::File file = h5::File::create_new(path("a.h5"));
    file.write("x", random_bytes(DType::f32, {4}, 1).view());
    file.commit();
  }
  const std::string before = slurp(path("a.h5"));
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100000, 100000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    int code = 1;
    {
      h5::File file = h5::File::create_new(path("a.h5"));
      bool write_failed = false;
      try {
        file.write("big", Tensor(DType::f32, {100000}).view());
      } catch (const IoError& error) {
        write_failed = std::string(error.what()).find("big") != std::string::npos;
      }
      try {
        file.commit();
      } catch (const IoError&) {
        code = write_failed ? 0 : 2;
      }
    }
    std::exit(code);  // not _exit: the library's own clean-up must not crash after the failure
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(slurp(path("a.h5")), before);
  EXPECT_FALSE(fs::exists(path("a.h5.tmp")));
}

TEST_F(H5File, DamagedFilesAreRefused) {
  EXPECT_THROW(h5::File::open_read(path("absent.h5")), DataError);
  std::ofstream(path("text.h5")) << "not HDF5 at all";
  EXPECT_THROW(h5::File::open_read(path("text.h5")), DataError);
  EXPECT_THROW(h5::File::open_read(directory_.string()), DataError);
  {
    h5::File file = h5::File::create_new(path("a.h5"));
    file.write("x", random_bytes(DType::f32, {50000}, 1).view());
    file.commit();
  }
  const auto size = fs::file_size(path("a.h5"));
  for (int percent = 0; percent < 100; ++percent) {
    fs::copy_file(path("a.h5"), path("cut.h5"), fs::copy_options::overwrite_existing);
    fs::resize_file(path("cut.h5"), size * static_cast<std::uintmax_t>(percent) / 100);
    EXPECT_THROW(h5::File::open_read(path("cut.h5")).read("x"), DataError) << percent << " %";
  }
}

TEST_F(H5File, OnlyBytesOfTheFileItselfAreRead) {
  if (!has_h5py()) GTEST_SKIP() << "python3-h5py is not installed";
  const std::string script =
      "import h5py, numpy as np\n"
      "open('" +
      path("secret") +
      "','wb').write(b'abcdefgh'*64)\n"
      "t = h5py.File('" +
      path("target.h5") +
      "','w'); t['x'] = np.arange(8.0); t.close()\n"
      "f = h5py.File('" +
      path("evil.h5") +
      "','w', libver='latest')\n"
      "f['ok'] = np.arange(8.0)\n"
      "f['soft'] = h5py.SoftLink('/ok')\n"
      "f['external'] = h5py.ExternalLink('" +
      path("target.h5") +
      "', '/x')\n"
      "f.create_dataset('raw', (8,), 'f8', external=[('" +
      path("secret") +
      "', 0, 64)])\n"
      "v = h5py.VirtualLayout((8,), 'f8'); v[:] = h5py.VirtualSource('" +
      path("target.h5") +
      "', 'x', (8,))\n"
      "f.create_virtual_dataset('virtual', v)\n"
      "f.create_dataset('chunked', (8,), 'f8', chunks=(4,))\n"
      "f.create_dataset('zip', (1024,), 'f8', compression='gzip')\n"
      "f.create_dataset('bomb', (2**40,), 'f8')\n"
      "f.create_dataset('big_endian', data=np.arange(8, dtype='>f8'))\n"
      "f.create_dataset('five', data=np.zeros((1,1,1,1,1)))\n"
      "f['vl'] = 'text'\n"
      "f.close()\n";
  ASSERT_EQ(run_python(script), 0);
  const h5::File file = h5::File::open_read(path("evil.h5"));
  EXPECT_EQ(file.read("ok").view().as<double>()[7], 7.0);
  for (const char* name : {"soft", "external", "external/deeper", "raw", "virtual", "chunked", "zip", "bomb",
                           "big_endian", "five", "vl"})
    EXPECT_THROW(file.read(name), DataError) << name;
  EXPECT_FALSE(file.contains("soft"));
  EXPECT_FALSE(file.contains("external"));
}

TEST_F(H5File, H5pyReadsItAll) {
  if (!has_h5py()) GTEST_SKIP() << "python3-h5py is not installed";
  {
    h5::File file = h5::File::create_new(path("a.h5"));
    Tensor b(DType::bf16, {4});
    const float values[] = {1.5f, -0.0078125f, 3.0e38f, 65280.0f};  // exact in bf16 but for the third
    for (int i = 0; i < 4; ++i) b.view().as<BFloat16>()[i] = BFloat16(values[i]);
    file.write("g/bf16", b.view());
    Tensor u(DType::u16, {2});
    u.view().as<std::uint16_t>()[0] = 65535;
    file.write("g/u16", u.view());
    file.write_strings("names", std::vector<std::string>{"a", "gr\xc3\xbcn"});
    file.set_attribute("", "title", std::string("it"));
    file.set_attribute("g", "n", std::int64_t{7});
    file.set_attribute("g", "x", 0.5);
    file.commit();
  }
  const std::string script =
      "import h5py, numpy as np\n"
      "f = h5py.File('" +
      path("a.h5") +
      "','r')\n"
      "b = f['g/bf16'][...]\n"
      "assert np.issubdtype(b.dtype, np.floating), b.dtype\n"
      "assert b[0] == 1.5 and b[1] == -0.0078125 and b[3] == 65280 and abs(b[2]/3.0e38 - 1) < 2**-8, b\n"
      "assert list(f['g/u16'][...]) == [65535, 0]\n"
      "assert f['names'].asstr()[1] == 'gr\\xfcn'\n"
      "assert f.attrs['title'] in (b'it', 'it'), f.attrs['title']\n"
      "assert f['g'].attrs['n'] == 7 and f['g'].attrs['x'] == 0.5\n";
  EXPECT_EQ(run_python(script), 0);
}

}  // namespace
}  // namespace moecollab
