#include "moecollab/ops/stack.hpp"

#include "dense_support.hpp"
#include "moecollab/ops/elementwise.hpp"

namespace moecollab::ops {
namespace {

using namespace moecollab::test;

struct Rows {
  std::vector<Tensor> tensors;
  std::vector<TensorView> views;
  std::vector<ConstTensorView> const_views;
};
Rows some_rows(DType dtype, std::int64_t count, const Shape& shape) {
  Rows rows;
  for (std::int64_t i = 0; i < count; ++i) {
    rows.tensors.push_back(random_tensor(dtype, shape, 10 + static_cast<std::uint64_t>(i)));
    rows.views.push_back(rows.tensors.back().view());
    rows.const_views.push_back(rows.tensors.back().view());
  }
  return rows;
}

TEST(Stack, RowsAreCopiedInOrder) {
  Stream stream;
  for (const DType dtype : kFloatTypes)
    for (const std::int64_t count : {0, 1, 5, 70}) {
      const Rows rows = some_rows(dtype, count, {3, 7});
      const Tensor out = poisoned(dtype, {count, 3, 7});
      stack_rows(stream, rows.const_views, out.view());
      for (std::int64_t i = 0; i < count; ++i)
        EXPECT_TRUE(same_bits(out.view().rows(i, i + 1).reshaped({3, 7}),
                              rows.const_views[static_cast<std::size_t>(i)]));
    }
}

TEST(Stack, AddingBackLeavesOutWhatIsEmpty) {
  Stream stream;
  for (const DType dtype : kFloatTypes) {
    Rows rows = some_rows(dtype, 5, {7}), want = some_rows(dtype, 5, {7});
    const Tensor in = random_tensor(dtype, {5, 7}, 1);
    rows.views[2] = TensorView{};
    add_to_rows(stream, in.view(), rows.views);
    for (std::int64_t i = 0; i < 5; ++i) {
      const auto row = static_cast<std::size_t>(i);
      if (i != 2) add(stream, in.view().rows(i, i + 1).reshaped({7}), want.views[row]);
      EXPECT_TRUE(same_bits(rows.tensors[row].view(), want.views[row])) << to_string(dtype) << " row " << i;
    }
  }
}

TEST(Stack, SameBitsForAnyThreads) {
  Stream stream;
  expect_same_for_any_threads([&] {
    Rows rows = some_rows(DType::f32, 9, {5000});
    add_to_rows(stream, random_tensor(DType::f32, {9, 5000}, 1).view(), rows.views);
    rows.tensors.emplace_back(DType::f32, Shape{9, 5000});
    stack_rows(stream, rows.const_views, rows.tensors.back().view());
    return std::move(rows.tensors);
  });
}

TEST(Stack, RejectsWhatDoesNotFit) {
  Stream stream;
  const Rows rows = some_rows(DType::f32, 2, {4});
  EXPECT_THROW(stack_rows(stream, rows.const_views, Tensor(DType::f32, {3, 4}).view()), ShapeError);
  EXPECT_THROW(stack_rows(stream, rows.const_views, Tensor(DType::f32, {2, 5}).view()), ShapeError);
  EXPECT_THROW(stack_rows(stream, rows.const_views, Tensor(DType::f64, {2, 4}).view()), DTypeError);
  EXPECT_THROW(add_to_rows(stream, Tensor(DType::f32, {2, 5}).view(), rows.views), ShapeError);
  EXPECT_THROW(add_to_rows(stream, Tensor(DType::bf16, {2, 4}).view(), rows.views), DTypeError);
}

}  // namespace
}  // namespace moecollab::ops
