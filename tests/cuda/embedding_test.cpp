// The embedding on the device has the bits of the host: rows are copied, and gradients added in order of t.
#include "moecollab/ops/embedding.hpp"

#include "cuda/dense_support.hpp"
#include "moecollab/core/random.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

class CudaEmbedding : public OnDevice {};

struct Case {
  std::int64_t T, V, D;
  bool all_one_token = false;
};
// One, two and three digits of ids; more ids than the sort gives a block; one run over all tokens.
constexpr Case kCases[] = {
    {0, 11, 6},      {1, 1, 5},      {1, 300, 6},    {90, 11, 6},           {1000, 11, 3},
    {300, 40000, 8}, {64, 70000, 1}, {2100, 300, 2}, {1000, 257, 64, true}, {40, 9, 1100}};

TEST_F(CudaEmbedding, HasTheBitsOfTheHost) {
  Stream host;
  for (const DType dtype : kDeviceTypes)
    for (const Case& c : kCases) {
      SCOPED_TRACE(std::string(to_string(dtype)) + " T " + std::to_string(c.T) + " V " + std::to_string(c.V));
      const Tensor tokens(DType::i32, {c.T});
      for (std::int64_t t = 0; t < c.T; ++t)
        tokens.view().as<std::int32_t>()[t] = static_cast<std::int32_t>(
            c.all_one_token ? c.V - 1 : random_below(1, 2, static_cast<std::uint64_t>(t), c.V));
      const Tensor table = random_tensor(dtype, {c.V, c.D}, 3), dy = random_tensor(dtype, {c.T, c.D}, 4);
      const Tensor start = random_tensor(DType::f32, {c.V, c.D}, 5);
      const Tensor y(dtype, {c.T, c.D}), d_table = copy_of(start.view());
      embedding_forward(host, tokens.view(), table.view(), y.view());
      embedding_backward(host, tokens.view(), dy.view(), d_table.view());
      const auto have = same_results([&](bool shifted) {
        const Placed ids(tokens.view(), shifted), ptable(table.view(), shifted), pdy(dy.view(), shifted);
        const Placed py(poisoned(dtype, {c.T, c.D}).view(), shifted), pd(start.view(), shifted);
        embedding_forward(device_stream(), ids.view(), ptable.view(), py.view());
        embedding_backward(device_stream(), ids.view(), pdy.view(), pd.view());
        return results_of(py, pd);
      });
      EXPECT_TRUE(same_bits(have[0].view(), y.view()));
      EXPECT_TRUE(same_bits(have[1].view(), d_table.view()));
    }
}

}  // namespace
}  // namespace moecollab::ops
