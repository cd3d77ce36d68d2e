// In place of libcublasLt: the calls that src/ops/cuda makes, as plain loops in f32 over the emulated
// device's memory. It refuses what the library refuses or would silently get wrong: types that do not go
// together, leading dimensions that are too small, sizes that do not fit, pointers that are less aligned than
// the search for an algorithm was told, and no workspace for an algorithm that wants one.
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "emulator.hpp"
#include "moecollab/core/bfloat16.hpp"

// The library's opaque structures.
struct cublasLtContext {};

namespace {

using moecollab::BFloat16;

struct Description {
  std::int32_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
};
struct Layout {
  std::int32_t type = 0;
  std::uint32_t reserved = 0;
  std::uint64_t rows = 0, columns = 0;
  std::int64_t ld = 0;
};
struct Wishes {
  std::uint64_t workspace_bytes = 0;
  std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
  std::array<std::uint32_t, 4> alignment{256, 256, 256, 256};  // A, B, C, D
};
// What an algorithm remembers in its opaque words.
struct Choice {
  std::uint64_t mark, workspace_bytes;
  std::array<std::uint32_t, 4> alignment;
  std::uint64_t m, n, k;
};
constexpr std::uint64_t kMark = 0x6d6d6c7473696d31;
static_assert(sizeof(Choice) <= sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(Description) <= sizeof(cublasLtMatmulDescOpaque_t));
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t));
static_assert(sizeof(Wishes) <= sizeof(cublasLtMatmulPreferenceOpaque_t));

template <class To, class From>
To read(const From* from) {
  To to;
  std::memcpy(static_cast<void*>(&to), from, sizeof to);
  return to;
}
template <class From, class To>
void write(const From& from, To* to) {
  std::memcpy(static_cast<void*>(to), &from, sizeof from);
}

struct Sizes {
  std::uint64_t m = 0, n = 0, k = 0;
};
bool holds(const Layout& l) {
  return l.rows > 0 && l.columns > 0 && l.ld >= static_cast<std::int64_t>(l.rows);
}

cublasStatus_t check(const Description& desc, const Layout& a, const Layout& b, const Layout& c,
                     const Layout& d, Sizes& sizes) {
  if (!holds(a) || !holds(b) || !holds(c) || !holds(d)) return CUBLAS_STATUS_INVALID_VALUE;
  const bool ta = desc.transpose_a != CUBLAS_OP_N, tb = desc.transpose_b != CUBLAS_OP_N;
  sizes = {ta ? a.columns : a.rows, tb ? b.rows : b.columns, ta ? a.rows : a.columns};
  const bool fits = (tb ? b.columns : b.rows) == sizes.k && c.rows == sizes.m && c.columns == sizes.n &&
                    d.rows == sizes.m && d.columns == sizes.n;
  if (!fits) return CUBLAS_STATUS_INVALID_VALUE;
  const bool known = (a.type == CUDA_R_16BF && (d.type == CUDA_R_16BF || d.type == CUDA_R_32F)) ||
                     (a.type == CUDA_R_32F && d.type == CUDA_R_32F);
  return known && a.type == b.type && c.type == d.type ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

std::size_t size_of(std::int32_t type) { return type == CUDA_R_16BF ? 2 : 4; }
float value_at(const void* p, std::int32_t type, std::size_t i) {
  return type == CUDA_R_16BF ? static_cast<float>(static_cast<const BFloat16*>(p)[i])
                             : static_cast<const float*>(p)[i];
}
void put_at(void* p, std::int32_t type, std::size_t i, float value) {
  if (type == CUDA_R_16BF)
    static_cast<BFloat16*>(p)[i] = BFloat16(value);
  else
    static_cast<float*>(p)[i] = value;
}

// op(matrix) as f32, one column of `rows` after the other.
std::vector<float> unpacked(const void* p, const Layout& l, bool transposed) {
  std::vector<float> out(l.rows * l.columns);
  for (std::uint64_t column = 0; column < l.columns; ++column)
    for (std::uint64_t row = 0; row < l.rows; ++row)
      out[transposed ? row * l.columns + column : column * l.rows + row] =
          value_at(p, l.type, column * static_cast<std::size_t>(l.ld) + row);
  return out;
}

struct Call {
  Description desc;
  Layout a, b, c, d;
  Sizes sizes;
  float alpha, beta;
  const void *pa, *pb, *pc;
  void* pd;
  void* workspace;
  std::uint64_t workspace_bytes;
};

void multiply(const Call& call) {
  const auto [m, n, k] = call.sizes;
  if (call.workspace_bytes > 0) std::memset(call.workspace, 0xff, call.workspace_bytes);  // it is the call's
  const std::vector<float> a = unpacked(call.pa, call.a, call.desc.transpose_a != CUBLAS_OP_N);
  const std::vector<float> b = unpacked(call.pb, call.b, call.desc.transpose_b != CUBLAS_OP_N);
  std::vector<float> sum(m);
  for (std::uint64_t column = 0; column < n; ++column) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (std::uint64_t i = 0; i < k; ++i) {
      const float factor = b[column * k + i];
      for (std::uint64_t row = 0; row < m; ++row) sum[row] += a[i * m + row] * factor;
    }
    for (std::uint64_t row = 0; row < m; ++row) {
      const std::size_t in = column * static_cast<std::size_t>(call.c.ld) + row;
      const std::size_t out = column * static_cast<std::size_t>(call.d.ld) + row;
      const float before = call.beta == 0.0f ? 0.0f : call.beta * value_at(call.pc, call.c.type, in);
      put_at(call.pd, call.d.type, out, call.alpha * sum[row] + before);
    }
  }
}

// The whole matrix lies in device memory, from an address as aligned as was promised.
bool usable(const void* p, const Layout& l, std::uint32_t alignment) {
  const auto* last = static_cast<const char*>(p) +
                     ((l.columns - 1) * static_cast<std::size_t>(l.ld) + l.rows - 1) * size_of(l.type);
  return reinterpret_cast<std::uintptr_t>(p) % alignment == 0 && cudasim::is_device_pointer(p) &&
         cudasim::is_device_pointer(last);
}

}  // namespace

extern "C" {

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    default:
      return "another cublasStatus_t";
  }
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  *desc = new cublasLtMatmulDescOpaque_t{};
  write(Description{}, *desc);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute, const void* value,
                                              std::size_t bytes) {
  if (value == nullptr || bytes != sizeof(std::int32_t)) return CUBLAS_STATUS_INVALID_VALUE;
  auto d = read<Description>(desc);
  if (attribute == CUBLASLT_MATMUL_DESC_TRANSA)
    std::memcpy(&d.transpose_a, value, bytes);
  else if (attribute == CUBLASLT_MATMUL_DESC_TRANSB)
    std::memcpy(&d.transpose_b, value, bytes);
  else
    return CUBLAS_STATUS_NOT_SUPPORTED;
  write(d, desc);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          std::uint64_t rows, std::uint64_t columns, std::int64_t ld) {
  *layout = new cublasLtMatrixLayoutOpaque_t{};
  write(Layout{static_cast<std::int32_t>(type), 0, rows, columns, ld}, *layout);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t{};
  write(Wishes{}, *preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, std::size_t bytes) {
  auto wishes = read<Wishes>(preference);
  const auto store = [&](auto& to) {
    if (value == nullptr || bytes != sizeof to) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&to, value, bytes);
    write(wishes, preference);
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return store(wishes.workspace_bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return store(wishes.reductions);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return store(wishes.alignment[0]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return store(wishes.alignment[1]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return store(wishes.alignment[2]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return store(wishes.alignment[3]);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

// One algorithm per product: long sums take a workspace where one is allowed.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  *found = 0;
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (wanted < 1) return CUBLAS_STATUS_INVALID_VALUE;
  Sizes sizes;
  const cublasStatus_t status = check(read<Description>(desc), read<Layout>(a), read<Layout>(b),
                                      read<Layout>(c), read<Layout>(d), sizes);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const auto wishes = read<Wishes>(preference);
  constexpr std::uint64_t kSplitFrom = 64, kWorkspaceBytes = 4096;
  const bool split = sizes.k >= kSplitFrom && wishes.workspace_bytes >= kWorkspaceBytes &&
                     (wishes.reductions & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) != 0;
  const Choice choice{kMark, split ? kWorkspaceBytes : 0, wishes.alignment, sizes.m, sizes.n, sizes.k};
  results[0] = {};
  write(choice, &results[0].algo);
  results[0].workspaceSize = choice.workspace_bytes;
  results[0].state = CUBLAS_STATUS_SUCCESS;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algo, void* workspace, std::size_t workspace_bytes,
                              cudaStream_t stream) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  Call call{read<Description>(desc),
            read<Layout>(a_layout),
            read<Layout>(b_layout),
            read<Layout>(c_layout),
            read<Layout>(d_layout),
            {},
            *static_cast<const float*>(alpha),
            *static_cast<const float*>(beta),
            a,
            b,
            c,
            d,
            workspace,
            0};
  const cublasStatus_t status = check(call.desc, call.a, call.b, call.c, call.d, call.sizes);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const auto choice = read<Choice>(algo);
  const bool of_these = choice.mark == kMark && choice.m == call.sizes.m && choice.n == call.sizes.n &&
                        choice.k == call.sizes.k;
  const bool has_workspace =
      choice.workspace_bytes == 0 || (workspace != nullptr && workspace_bytes >= choice.workspace_bytes &&
                                      cudasim::is_device_pointer(workspace));
  const bool pointers = usable(a, call.a, choice.alignment[0]) && usable(b, call.b, choice.alignment[1]) &&
                        (call.beta == 0.0f || usable(c, call.c, choice.alignment[2])) &&
                        usable(d, call.d, choice.alignment[3]);
  if (!of_these || !has_workspace || !pointers) return CUBLAS_STATUS_INVALID_VALUE;
  call.workspace_bytes = choice.workspace_bytes;
  const cudaError_t error = cudasim::enqueue(stream, [call] {
    multiply(call);
    return cudaSuccess;
  });
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
