// Dense products with cuBLASLt, and the plans that one stream keeps.
#pragma once

#include <cublasLt.h>

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>

#include "moecollab/core/stream.hpp"
#include "moecollab/core/tensor.hpp"

namespace moecollab::ops::cuda {

// D[m,n] = op(A) op(B) (+ D), all column-major with leading dimensions `ld`: the library's own form. A and B
// are of type `in`, D of type `out`.
struct DenseProduct {
  DType in = DType::f32, out = DType::f32;
  bool transpose_a = false, transpose_b = false, accumulate = false;
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t ld_a = 0, ld_b = 0, ld_d = 0;
  std::array<std::uint32_t, 3> alignment{};  // bytes that the pointers A, B, D are multiples of

  auto operator<=>(const DenseProduct&) const = default;
};

// What the library wants to know about a product, and the way it chose to compute it.
struct DensePlan;

class DensePlans {
 public:
  explicit DensePlans(Stream& stream);
  ~DensePlans();
  DensePlans(const DensePlans&) = delete;
  DensePlans& operator=(const DensePlans&) = delete;

  // alignment is filled in here. Takes the stream's scratch memory.
  void run(Stream& stream, DenseProduct product, const void* a, const void* b, void* d);

 private:
  const DensePlan& plan_of(const DenseProduct& product);

  cublasLtHandle_t handle_ = nullptr;
  std::map<DenseProduct, std::unique_ptr<DensePlan>> plans_;
};

}  // namespace moecollab::ops::cuda
