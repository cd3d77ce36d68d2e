#include "moecollab/ops/embedding.hpp"

#include "dense_support.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

Tensor tokens_below(std::int64_t T, std::int32_t V) {
  Tensor t(DType::i32, {T});
  for (std::int64_t i = 0; i < T; ++i)
    t.view().as<std::int32_t>()[i] = static_cast<std::int32_t>(i * 7919 % V);
  return t;
}

TEST(Embedding, GradientAgreesWithFiniteDifferences) {
  Stream stream;
  const Tensor tokens = ints({2, 0, 2, 4}), table = random_tensor(DType::f64, {5, 3}, 1);
  const Tensor dy = random_tensor(DType::f64, {4, 3}, 2), y = poisoned(DType::f64, {4, 3});
  const Tensor d_table(DType::f64, {5, 3});
  embedding_backward(stream, tokens.view(), dy.view(), d_table.view());
  EXPECT_TRUE(gradient_matches(
      [&] {
        embedding_forward(stream, tokens.view(), table.view(), y.view());
        return dot(y.view(), dy.view());
      },
      table.view(), d_table.view()));
}

TEST(Embedding, CopiesRowsAndSumsThemInTokenOrder) {
  Stream stream;
  const std::int64_t T = 700, V = 150, D = 67;
  for (const DType dtype : kFloatTypes) {
    const Tensor tokens = tokens_below(T, V), table = random_tensor(dtype, {V, D}, 1),
                 y = poisoned(dtype, {T, D});
    embedding_forward(stream, tokens.view(), table.view(), y.view());
    for (std::int64_t t = 0; t < T; ++t) {
      const std::int32_t v = tokens.view().as<std::int32_t>()[t];
      ASSERT_TRUE(same_bits(y.view().rows(t, t + 1), table.view().rows(v, v + 1)));
    }
    const DType acc = accumulator_of(dtype);
    const Tensor dy = random_tensor(dtype, {T, D}, 2), d_table = random_tensor(acc, {V, D}, 3);
    const Tensor want = copy_of(d_table.view()), wide_dy = converted(dy.view(), acc);
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t d = 0; d < D; ++d) {
        const std::int64_t to = tokens.view().as<std::int32_t>()[t] * D + d, from = t * D + d;
        if (acc == DType::f64)
          want.view().as<double>()[to] += wide_dy.view().as<double>()[from];
        else
          want.view().as<float>()[to] += wide_dy.view().as<float>()[from];
      }
    embedding_backward(stream, tokens.view(), dy.view(), d_table.view());
    EXPECT_TRUE(same_bits(d_table.view(), want.view())) << to_string(dtype);
  }
}

TEST(Embedding, SameBitsForAnyThreadsAndNoRows) {
  Stream stream;
  for (const std::int64_t T : {std::int64_t{0}, std::int64_t{900}})
    expect_same_for_any_threads([&] {
      const Tensor tokens = tokens_below(T, 40), dy = random_tensor(DType::bf16, {T, 64}, 1);
      std::vector<Tensor> out;
      out.push_back(random_tensor(DType::f32, {40, 64}, 2));
      embedding_backward(stream, tokens.view(), dy.view(), out[0].view());
      return out;
    });
}

TEST(Embedding, RejectsWhatDoesNotFit) {
  Stream stream;
  const Tensor table(DType::f32, {5, 3}), y(DType::f32, {2, 3});
  EXPECT_THROW(embedding_forward(stream, ints({0, 5}).view(), table.view(), y.view()), ShapeError);
  EXPECT_THROW(embedding_forward(stream, ints({0, -1}).view(), table.view(), y.view()), ShapeError);
  EXPECT_THROW(embedding_forward(stream, ints({0}).view(), table.view(), y.view()), ShapeError);
  EXPECT_THROW(embedding_backward(stream, y.view(), y.view(), table.view()), Error);
  EXPECT_THROW(
      embedding_backward(stream, ints({0, 1}).view(), Tensor(DType::f64, {2, 3}).view(), table.view()),
      DTypeError);
}

}  // namespace
}  // namespace moecollab::ops
