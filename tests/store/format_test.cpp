// The files as others read them: digests by their published values, HDF5 and JSON by Python.
#include <gtest/gtest.h>

#include "moecollab/core/error.hpp"
#include "moecollab/store/checkpoint.hpp"
#include "moecollab/store/shard.hpp"
#include "support/synthetic_model.hpp"
#include "support/temporary_directory.hpp"

namespace moecollab {
namespace {

using test::SyntheticModel;

TEST(Digest, HasThePublishedValue) {
  EXPECT_EQ(to_string(store::digest_of(std::string())),
            "99aa06d3014798d86001c324468d497f");  // XXH3-128 of ""
  const std::string text(300000, 'x');
  store::Hasher hasher;
  hasher.update(text.data(), 1);
  hasher.update(text.data(), 131071);
  hasher.update(text.data(), 300000 - 131072);
  EXPECT_EQ(hasher.digest(), store::digest_of(text));
  EXPECT_EQ(store::parse_digest(to_string(hasher.digest())), hasher.digest());
  EXPECT_THROW(store::parse_digest("99aa06d3014798d86001c324468d497"), DataError);
  EXPECT_THROW(store::parse_digest("99AA06d3014798d86001c324468d497f"), DataError);
  EXPECT_THROW(store::digest_of_file("/absent"), DataError);
}

TEST(Shard, ComesBackWithItsAttributes) {
  const test::TemporaryDirectory run;
  Tensor tensor(DType::f32, {2, 3});
  fill_normal(1, 2, 1.0, tensor.view());
  const store::ShardTensor item{BlockKind::expert, Uuid::from_seed(1, 1), store::Slot::value, "w",
                                tensor.view()};
  store::write_shard(run.path(), "a.h5", {&item, 1},
                     {{"format", "test"}, {"n", std::int64_t{-3}}, {"empty", ""}});
  const store::ReadShard read = store::read_shard(run / "a.h5");
  ASSERT_EQ(read.tensors.size(), 1u);
  EXPECT_TRUE(test::same_bits(read.tensors.at("value/w").view(), tensor.view()));
  EXPECT_EQ(read.attributes.size(), 3u);
  EXPECT_EQ(std::get<std::int64_t>(read.attributes.at("n")), -3);
  EXPECT_EQ(std::get<std::string>(read.attributes.at("format")), "test");
}

// Python finds every tensor of the manifest in its file, with the type, shape, place and bytes that it
// states.
TEST(Format, PythonReadsAllOfIt) {
  if (!test::has_h5py()) GTEST_SKIP() << "python3-h5py is not installed";
  const test::TemporaryDirectory run;
  const SyntheticModel model = std::move(SyntheticModel(DType::bf16, test::synthetic_slots(3)).fill(1));
  store::CheckpointMeta meta;
  meta.state.step = 7;
  meta.model_json = R"({"hidden_size":8})";
  meta.run_id = "r";
  store::save_checkpoint(run / "c", meta, model.params, model.slots, Communicator::self());
  const Block& expert = *model.params.find_block(BlockKind::expert, test::synthetic_slot(0).uuid);
  const float second = expert.part(expert.master(), 0).as<float>()[1];
  const std::string script = R"(
import h5py, json, numpy as np, os, sys
d = ')" + run / "c" + R"(/'
m = json.load(open(d + 'manifest.json'))['manifest']
assert m['step'] == 7 and m['model'] == {'hidden_size': 8} and m['dtype'] == 'bf16'
seen = 0
for t in m['tensors']:
    f = h5py.File(d + t['file'], 'r')
    x = f[t['dataset']]
    assert x.shape == tuple(t['shape']) and x.dtype == np.dtype('<f4') and t['dtype'] == 'f32', t
    assert x.id.get_offset() == t['offset_bytes'] and x.chunks is None, t
    assert x.attrs['xxh3_128'].decode() == t['xxh3_128'], t
    raw = open(d + t['file'], 'rb').read()[t['offset_bytes']:][:x.size * 4]
    assert raw == x[...].tobytes(), t
    seen += 1
datasets = 0
def count(name, item):
    global datasets
    datasets += isinstance(item, h5py.Dataset)
for f in m['files']:
    assert os.path.getsize(d + f['name']) == f['size_bytes'], f
    if f['name'].endswith('.h5'): h5py.File(d + f['name'], 'r').visititems(count)
assert seen == datasets and seen > 0, (seen, datasets)
first = m['experts'][0]
f = h5py.File(d + 'expert-' + first['uuid'] + '.h5', 'r')
a = f.attrs
assert a['format'].decode() == 'moecollab-shard' and a['format_version'] == 1
assert a['uuid'].decode() == first['uuid'] and a['name'].decode() == 'expert-0' and a['owner'].decode() == 'owner-0'
assert a['domain'].decode() == 'domain-0' and a['kind'].decode() == 'swiglu' and a['width'] == 5 and a['step'] == 7
assert sorted(f) == ['exp_avg', 'exp_avg_sq', 'value']
assert f['value/layers.0.gate_proj.weight'][0, 1] == np.float32(float.fromhex(')" +
                             [&] {
                               char text[64];
                               std::snprintf(text, sizeof text, "%a", static_cast<double>(second));
                               return std::string(text);
                             }() +
                             R"('))
frozen = h5py.File(d + 'expert-' + m['experts'][1]['uuid'] + '.h5', 'r')
assert sorted(frozen) == ['value']
rows = h5py.File(d + 'router.h5', 'r')['value']
assert sorted(rows) == sorted(e['uuid'] for e in m['experts'])
assert rows[first['uuid']]['layers.1.weight'].shape == (8,)
)";
  EXPECT_EQ(test::run_python(script), 0);
}

}  // namespace
}  // namespace moecollab
