#include "ops/cuda/cublaslt.hpp"

#include <algorithm>
#include <bit>
#include <string>

#include "moecollab/core/cuda_check.cuh"
#include "moecollab/core/error.hpp"

namespace moecollab::ops::cuda {
namespace {

constexpr std::uint64_t kMaxWorkspaceBytes = std::uint64_t{32} << 20;
constexpr std::size_t kMaxPlans = 512;  // evaluation and decoding bring new row counts without end

void check_library(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const std::string what = std::string(call) + ": " + cublasLtGetStatusString(status);
  if (status == CUBLAS_STATUS_ALLOC_FAILED)
    throw UsageError(what + ". The device is full: use smaller batches");
  throw InternalError(what);
}

cudaDataType_t library_type(DType dtype) { return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

std::uint32_t alignment_of(const void* p) {
  constexpr std::uintptr_t kLibraryDefault = 256;
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  return static_cast<std::uint32_t>(address == 0 ? kLibraryDefault
                                                 : std::min(kLibraryDefault, address & (~address + 1)));
}

std::string text(const DenseProduct& p) {
  return std::to_string(p.m) + " x " + std::to_string(p.n) + " x " + std::to_string(p.k) + " of " +
         to_string(p.in) + " to " + to_string(p.out);
}

}  // namespace

struct DensePlan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  cublasLtMatmulAlgo_t algo{};
  std::int64_t workspace_bytes = 0;

  explicit DensePlan(const DenseProduct& p) {
    // Products of f32 are products of f32: TF32, which rounds the factors to ten bits, has a compute type of
    // its own.
    check_library(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                  "cublasLtMatmulDescCreate");
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    layout(a, p.in, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.ld_a);
    layout(b, p.in, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.ld_b);
    layout(d, p.out, p.m, p.n, p.ld_d);
  }
  ~DensePlan() {
    if (d != nullptr) cublasLtMatrixLayoutDestroy(d);
    if (b != nullptr) cublasLtMatrixLayoutDestroy(b);
    if (a != nullptr) cublasLtMatrixLayoutDestroy(a);
    if (product != nullptr) cublasLtMatmulDescDestroy(product);
  }
  DensePlan(const DensePlan&) = delete;
  DensePlan& operator=(const DensePlan&) = delete;

 private:
  void set(cublasLtMatmulDescAttributes_t attribute, cublasOperation_t value) {
    check_library(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof value),
                  "cublasLtMatmulDescSetAttribute");
  }
  static void layout(cublasLtMatrixLayout_t& to, DType dtype, std::int64_t rows, std::int64_t columns,
                     std::int64_t ld) {
    check_library(cublasLtMatrixLayoutCreate(&to, library_type(dtype), static_cast<std::uint64_t>(rows),
                                             static_cast<std::uint64_t>(columns), ld),
                  "cublasLtMatrixLayoutCreate");
  }
};

namespace {

class Preference {
 public:
  Preference() { check_library(cublasLtMatmulPreferenceCreate(&handle_), "cublasLtMatmulPreferenceCreate"); }
  ~Preference() { cublasLtMatmulPreferenceDestroy(handle_); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    check_library(cublasLtMatmulPreferenceSetAttribute(handle_, attribute, &value, sizeof value),
                  "cublasLtMatmulPreferenceSetAttribute");
  }
  cublasLtMatmulPreference_t handle() const { return handle_; }

 private:
  cublasLtMatmulPreference_t handle_ = nullptr;
};

}  // namespace

DensePlans::DensePlans(Stream&) { check_library(cublasLtCreate(&handle_), "cublasLtCreate"); }

DensePlans::~DensePlans() { cublasLtDestroy(handle_); }

const DensePlan& DensePlans::plan_of(const DenseProduct& p) {
  if (const auto found = plans_.find(p); found != plans_.end()) return *found->second;
  auto plan = std::make_unique<DensePlan>(p);
  Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMaxWorkspaceBytes);
  // Where the sum over k is split, its parts may meet in the workspace only, as f32, in a separate step:
  // added up in place or stored in the output type they would be rounded to bf16 in between, and we rely on
  // no order that the parts reach the output in.
  preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  // Parameters are slices of flat blocks, so pointers may be multiples of one element only.
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p.alignment[0]);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p.alignment[1]);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.alignment[2]);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.alignment[2]);
  cublasLtMatmulHeuristicResult_t result{};
  int num_results = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, plan->product, plan->a, plan->b, plan->d, plan->d,
                                     preference.handle(), 1, &result, &num_results);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && num_results == 0))
    throw InternalError("cuBLASLt has no way to compute a product " + text(p));
  check_library(status, "cublasLtMatmulAlgoGetHeuristic");
  check_library(result.state, "cublasLtMatmulAlgoGetHeuristic");
  plan->algo = result.algo;
  plan->workspace_bytes = static_cast<std::int64_t>(result.workspaceSize);
  if (plans_.size() >= kMaxPlans) plans_.clear();
  return *plans_.emplace(p, std::move(plan)).first->second;
}

void DensePlans::run(Stream& stream, DenseProduct product, const void* a, const void* b, void* d) {
  product.alignment = {alignment_of(a), alignment_of(b), alignment_of(d)};
  const DensePlan& plan = plan_of(product);
  void* const workspace = plan.workspace_bytes > 0 ? stream.scratch(plan.workspace_bytes) : nullptr;
  const float one = 1.0f, beta = product.accumulate ? 1.0f : 0.0f;
  check_library(cublasLtMatmul(handle_, plan.product, &one, a, plan.a, b, plan.b, &beta, d, plan.d, d, plan.d,
                               &plan.algo, workspace, static_cast<std::size_t>(plan.workspace_bytes),
                               cuda_stream(stream)),
                "cublasLtMatmul");
}

}  // namespace moecollab::ops::cuda
