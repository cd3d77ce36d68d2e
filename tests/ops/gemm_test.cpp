#include "ops/cpu/gemm.hpp"

#include <cmath>
#include <cstring>

#include "dense_support.hpp"

namespace moecollab::ops::cpu {
namespace {

using namespace moecollab::test;

struct Case {
  std::int64_t m, n, k;
};
// Whole tiles (a primitive per shape), ragged ones (one primitive for all), vectors, nothing to sum.
constexpr Case kCases[] = {{64, 64, 64}, {32, 48, 96}, {37, 29, 53}, {1, 17, 9},   {5, 1, 7},
                           {3, 4, 1},    {96, 16, 32}, {130, 70, 5}, {7, 5, 0},    {0, 4, 3},
                           {4, 0, 3},    {33, 65, 31}, {16, 16, 16}, {128, 32, 64}};

// Operands with gaps between the rows, and |op(A)| |op(B)| beside op(A) op(B), both in plain double.
struct Problem {
  GemmShape shape;
  Tensor a, b, c;
  std::vector<double> want, magnitude;

  Problem(const Case& s, bool ta, bool tb, DType dtype, DType c_dtype, bool accumulate) {
    const std::int64_t rows_a = ta ? s.k : s.m, cols_a = ta ? s.m : s.k;
    const std::int64_t rows_b = tb ? s.n : s.k, cols_b = tb ? s.k : s.n;
    shape = {ta ? Trans::yes : Trans::no,
             tb ? Trans::yes : Trans::no,
             s.m,
             s.n,
             s.k,
             cols_a + 3,
             cols_b + 5,
             s.n + 2};
    a = random_tensor(dtype, {rows_a, shape.lda}, 1);
    b = random_tensor(dtype, {rows_b, shape.ldb}, 2);
    c = accumulate ? random_tensor(c_dtype, {s.m, shape.ldc}, 3) : poisoned(c_dtype, {s.m, shape.ldc});
    const Tensor wide_a = converted(a.view(), DType::f64), wide_b = converted(b.view(), DType::f64);
    const Tensor wide_c = converted(c.view(), DType::f64);
    const double *pa = wide_a.view().as<double>(), *pb = wide_b.view().as<double>();
    for (std::int64_t i = 0; i < s.m; ++i)
      for (std::int64_t j = 0; j < s.n; ++j) {
        const double start = accumulate ? wide_c.view().as<double>()[i * shape.ldc + j] : 0.0;
        double sum = start, size = std::fabs(start);
        for (std::int64_t l = 0; l < s.k; ++l) {
          const double product = (ta ? pa[l * shape.lda + i] : pa[i * shape.lda + l]) *
                                 (tb ? pb[j * shape.ldb + l] : pb[l * shape.ldb + j]);
          sum += product;
          size += std::fabs(product);
        }
        want.push_back(sum);
        magnitude.push_back(size);
      }
  }

  // Any order of summation is within (k + 1) eps of the sum of magnitudes; storing adds eps of C's type.
  void check(ConstTensorView before, double sum_eps) const {
    const Tensor have = converted(c.view(), DType::f64), old = converted(before, DType::f64);
    const double *p = have.view().as<double>(), *o = old.view().as<double>();
    const double store_eps = eps_of(c.dtype());
    for (std::int64_t i = 0; i < shape.m; ++i) {
      for (std::int64_t j = 0; j < shape.n; ++j) {
        const auto at = static_cast<std::size_t>(i * shape.n + j);
        const double bound =
            static_cast<double>(shape.k + 1) * sum_eps * magnitude[at] + store_eps * std::fabs(want[at]);
        ASSERT_LE(std::fabs(p[i * shape.ldc + j] - want[at]), bound) << i << ", " << j;
      }
      for (std::int64_t j = shape.n; j < shape.ldc; ++j)
        ASSERT_TRUE(p[i * shape.ldc + j] == o[i * shape.ldc + j] || std::isnan(o[i * shape.ldc + j]))
            << "wrote into the gap behind row " << i;
    }
  }
};

template <class A, class C, class Product>
void check_all(const Product& product, bool with_accumulation) {
  const double sum_eps = std::is_same_v<A, double> ? eps_of(DType::f64) : kEpsF32;
  for (const Case& s : kCases)
    for (const bool ta : {false, true})
      for (const bool tb : {false, true})
        for (const bool accumulate : {false, true}) {
          if (accumulate && !with_accumulation) continue;
          SCOPED_TRACE(testing::Message()
                       << s.m << "x" << s.n << "x" << s.k << " trans " << ta << tb << " beta " << accumulate);
          Problem p(s, ta, tb, DTypeOf<A>::value, DTypeOf<C>::value, accumulate);
          const Tensor before = copy_of(p.c.view());
          product(p.shape, p.a.view().as<A>(), p.b.view().as<A>(), accumulate ? 1.0f : 0.0f,
                  p.c.view().as<C>());
          p.check(before.view(), sum_eps);
        }
}

TEST(Gemm, AgreesWithPlainLoopsInF32) {
  check_all<float, float>([](auto... args) { gemm(args...); }, true);
}
TEST(Gemm, AgreesWithPlainLoopsInBf16) {
  check_all<BFloat16, float>([](auto... args) { gemm(args...); }, true);
}
TEST(Gemm, AgreesWithPlainLoopsInBf16WithBf16Result) {
  check_all<BFloat16, BFloat16>([](auto... args) { gemm(args...); }, false);
}
TEST(Gemm, AgreesWithPlainLoopsInF64) {
  check_all<double, double>([](const GemmShape& s, const double* a, const double* b, float beta,
                               double* c) { gemm(s, a, b, beta, c); },
                            true);
}
TEST(Gemm, WidenedBf16AgreesWithPlainLoops) {
  check_all<BFloat16, float>([](auto... args) { gemm_widened(args...); }, true);
  check_all<BFloat16, BFloat16>([](auto... args) { gemm_widened(args...); }, false);
}

TEST(Gemm, RefusesToAccumulateInBf16) {
  Problem p({4, 4, 4}, false, false, DType::bf16, DType::bf16, true);
  EXPECT_THROW(
      gemm(p.shape, p.a.view().as<BFloat16>(), p.b.view().as<BFloat16>(), 1.0f, p.c.view().as<BFloat16>()),
      InternalError);
}

// f32 result of a problem in f32 or bf16.
void multiply(const Problem& p, float* c) {
  if (p.a.dtype() == DType::f32)
    gemm(p.shape, p.a.view().as<float>(), p.b.view().as<float>(), 0.0f, c);
  else
    gemm(p.shape, p.a.view().as<BFloat16>(), p.b.view().as<BFloat16>(), 0.0f, c);
}

std::vector<Problem> some_problems() {
  std::vector<Problem> problems;
  for (const Case& s : {Case{256, 128, 256}, Case{128, 256, 96}, Case{37, 129, 700}, Case{256, 64, 512},
                        Case{61, 64, 64}, Case{8, 8, 20000}})
    for (const bool ta : {false, true})
      for (const DType dtype : {DType::f32, DType::bf16})
        problems.emplace_back(s, ta, true, dtype, DType::f32, false);
  return problems;
}

// With more threads to itself the library would cut a long sum in parts: other bits.
TEST(Gemm, IgnoresTheThreadCountOfItsCaller) {
  const int before = omp_get_max_threads();
  for (const Problem& p : some_problems()) {
    const Tensor one = copy_of(p.c.view()), four = copy_of(p.c.view());
    omp_set_num_threads(1);
    multiply(p, one.view().as<float>());
    omp_set_num_threads(4);
    multiply(p, four.view().as<float>());
    EXPECT_EQ(omp_get_max_threads(), 4) << "the caller's thread count must stay as it was";
    EXPECT_TRUE(same_bits(one.view(), four.view())) << p.shape.m << "x" << p.shape.n << "x" << p.shape.k;
  }
  omp_set_num_threads(before);
}

// A scratchpad or a primitive shared between threads would mix their operands, though only when one thread is
// cut off in the middle of a product, or two run at once: hence many products, and a common start.
TEST(Gemm, ThreadsDoNotDisturbEachOther) {
  const std::vector<Problem> problems = some_problems();
  const auto count = static_cast<int>(problems.size());
  std::vector<Tensor> alone;
  for (const Problem& p : problems) {
    alone.push_back(copy_of(p.c.view()));
    multiply(p, alone.back().view().as<float>());
  }
  int different = 0;
#pragma omp parallel num_threads(4) reduction(+ : different)
  {
    std::vector<Tensor> results;
    for (const Problem& p : problems) results.push_back(copy_of(p.c.view()));
#pragma omp barrier
    for (int round = 0; round < 40; ++round)
      for (int i = 0; i < count; ++i) {
        const auto at = static_cast<std::size_t>((i + omp_get_thread_num() * 5) % count);
        const TensorView c = results[at].view();
        multiply(problems[at], c.as<float>());
        if (std::memcmp(c.data, alone[at].view().data, static_cast<std::size_t>(c.size_bytes())) != 0)
          ++different;
      }
  }
  EXPECT_EQ(different, 0);
}

}  // namespace
}  // namespace moecollab::ops::cpu
