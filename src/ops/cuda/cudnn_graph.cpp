#include "ops/cuda/cudnn_graph.hpp"

#include <array>
#include <string>

#include "moecollab/core/error.hpp"

namespace moecollab::ops::cuda {

void check_cudnn(cudnnStatus_t status, const char* call, std::source_location where) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  std::array<char, 512> detail{};
  cudnnGetLastErrorString(detail.data(), detail.size());
  const std::string what =
      std::string(call) + ": " + cudnnGetErrorString(status) + " (" + detail.data() + ")";
  switch (status) {
    case CUDNN_STATUS_ALLOC_FAILED:
    case CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED:
      throw UsageError(what + ". The device is full: lower train.batch_size or raise train.micro_batches",
                       where);
    case CUDNN_STATUS_NOT_INITIALIZED:
    case CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED:
    case CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH:
      throw UsageError(what +
                           ". cuDNN cannot start: its libraries must be of one version, found by the loader, "
                           "and fit the driver; or use --device cpu",
                       where);
    default:
      throw InternalError(what, where);
  }
}

namespace {

Axes packed(const Axes& extents) {
  Axes strides(extents.size(), 1);
  for (std::size_t i = extents.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * extents[i + 1];
  return strides;
}

GraphTensor tensor(std::int64_t uid, Axes extents, const Axes& strides, cudnnDataType_t type, bool is_virtual,
                   bool by_value) {
  Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, uid).set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type);
  d.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, extents);
  d.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, strides.empty() ? packed(extents) : strides);
  // Half-width operands of products are read 16 bytes at a time; the rest may lie anywhere.
  d.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, std::int64_t{type == CUDNN_DATA_BFLOAT16 ? 16 : 4});
  d.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, is_virtual);
  d.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, by_value);
  d.finalize("cuDNN tensor");
  return {d, std::move(extents)};
}

}  // namespace

Descriptor::Descriptor(cudnnBackendDescriptorType_t type) {
  cudnnBackendDescriptor_t raw = nullptr;
  check_cudnn(cudnnBackendCreateDescriptor(type, &raw), "cudnnBackendCreateDescriptor");
  handle_ = std::shared_ptr<void>(raw, [](void* p) { cudnnBackendDestroyDescriptor(p); });
}

void Descriptor::set_bytes(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                           std::int64_t num, const void* values) {
  check_cudnn(cudnnBackendSetAttribute(get(), name, type, num, values),
              ("cudnnBackendSetAttribute " + std::to_string(name)).c_str());
}

Descriptor& Descriptor::set(cudnnBackendAttributeName_t name, const Descriptor& other) {
  kept_.push_back(other);
  return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, other.get());
}

Descriptor& Descriptor::set(cudnnBackendAttributeName_t name, const std::vector<Descriptor>& others) {
  std::vector<cudnnBackendDescriptor_t> raw;
  for (const Descriptor& other : others) raw.push_back(other.get());
  kept_.insert(kept_.end(), others.begin(), others.end());
  return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, raw);
}

Descriptor& Descriptor::finalize(const char* what) {
  check_cudnn(try_finalize(), what);
  return *this;
}

cudnnStatus_t Descriptor::try_finalize() { return cudnnBackendFinalize(get()); }

std::int64_t Descriptor::get_int(cudnnBackendAttributeName_t name) const {
  std::int64_t value = 0, num = 0;
  check_cudnn(cudnnBackendGetAttribute(get(), name, CUDNN_TYPE_INT64, 1, &num, &value),
              ("cudnnBackendGetAttribute " + std::to_string(name)).c_str());
  return value;
}

std::vector<Descriptor> Descriptor::get_all(cudnnBackendAttributeName_t name,
                                            cudnnBackendDescriptorType_t type) const {
  std::int64_t num = 0;
  check_cudnn(cudnnBackendGetAttribute(get(), name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &num, nullptr),
              "cudnnBackendGetAttribute");
  std::vector<Descriptor> out;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (std::int64_t i = 0; i < num; ++i) raw.push_back(out.emplace_back(type).get());
  if (num > 0)
    check_cudnn(cudnnBackendGetAttribute(get(), name, CUDNN_TYPE_BACKEND_DESCRIPTOR, num, &num, raw.data()),
                "cudnnBackendGetAttribute");
  out.erase(out.begin() + num, out.end());
  for (Descriptor& d : out) d.kept_.push_back(*this);
  return out;
}

std::vector<cudnnBackendNumericalNote_t> Descriptor::numerical_notes() const {
  std::vector<cudnnBackendNumericalNote_t> notes(CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
  std::int64_t num = 0;
  check_cudnn(cudnnBackendGetAttribute(get(), CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                       CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &num, notes.data()),
              "cudnnBackendGetAttribute");
  notes.resize(static_cast<std::size_t>(num));
  return notes;
}

GraphTensor Graph::input(std::int64_t uid, Axes extents, Axes strides, cudnnDataType_t type) {
  return tensor(uid, std::move(extents), strides, type, false, false);
}
GraphTensor Graph::scalar(std::int64_t uid) {
  return tensor(uid, {1, 1, 1, 1}, {}, CUDNN_DATA_FLOAT, false, true);
}
GraphTensor Graph::between(Axes extents, cudnnDataType_t type, Axes strides) {
  return tensor(next_uid_++, std::move(extents), strides, type, true, false);
}

GraphTensor Graph::product(const GraphTensor& a, const GraphTensor& b, const GraphTensor& c,
                           const Sizes& sizes) {
  Descriptor how(CUDNN_BACKEND_MATMUL_DESCRIPTOR), operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  how.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT).finalize("cuDNN product");
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, a.descriptor);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, b.descriptor);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, c.descriptor);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
  if (sizes.rows != nullptr)
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, sizes.rows->descriptor);
  if (sizes.columns != nullptr)
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, sizes.columns->descriptor);
  if (sizes.inner != nullptr)
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, sizes.inner->descriptor);
  return add(operation, c, "cuDNN product operation");
}

GraphTensor Graph::pointwise(cudnnPointwiseMode_t mode, const std::vector<GraphTensor>& in,
                             const GraphTensor& out, cudnnDataType_t math) {
  static constexpr cudnnBackendAttributeName_t kInputs[] = {CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
                                                            CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                                                            CUDNN_ATTR_OPERATION_POINTWISE_TDESC};
  Descriptor how(CUDNN_BACKEND_POINTWISE_DESCRIPTOR), operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
  how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, math).finalize("cuDNN pointwise");
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
  for (std::size_t i = 0; i < in.size(); ++i) operation.set(kInputs[i], in[i].descriptor);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out.descriptor);
  return add(operation, out, "cuDNN pointwise operation");
}

GraphTensor Graph::index(const GraphTensor& like, std::int64_t axis) {
  const GraphTensor out = between(like.extents, CUDNN_DATA_INT32);
  Descriptor how(CUDNN_BACKEND_POINTWISE_DESCRIPTOR), operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, CUDNN_POINTWISE_GEN_INDEX);
  how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_INT32);
  how.set(CUDNN_ATTR_POINTWISE_AXIS, axis).finalize("cuDNN index");
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, like.descriptor);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out.descriptor);
  return add(operation, out, "cuDNN index operation");
}

GraphTensor Graph::reduce(cudnnReduceTensorOp_t how, const GraphTensor& in, const GraphTensor& out) {
  Descriptor reduction(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  Descriptor operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  reduction.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, how);
  reduction.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT)
      .finalize("cuDNN reduction");
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, reduction);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, in.descriptor);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, out.descriptor);
  return add(operation, out, "cuDNN reduction operation");
}

GraphTensor Graph::reshape(const GraphTensor& in, const GraphTensor& out) {
  Descriptor operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, in.descriptor);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, out.descriptor);
  return add(operation, out, "cuDNN reshape operation");
}

GraphTensor Graph::add(Descriptor& operation, const GraphTensor& out, const char* what) {
  operations_.push_back(operation.finalize(what));
  return out;
}

Descriptor Graph::finish(cudnnHandle_t handle) {
  Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operations_);
  if (handle != nullptr) graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  return graph.finalize("cuDNN operation graph");
}

std::vector<Descriptor> engine_configurations(const Descriptor& graph, const Descriptor* device) {
  std::vector<Descriptor> all;
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode);
    if (device != nullptr) heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, *device);
    if (heuristics.try_finalize() != CUDNN_STATUS_SUCCESS) continue;  // not supported: nothing to recommend
    for (Descriptor& d :
         heuristics.get_all(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR))
      all.push_back(std::move(d));
  }
  return all;
}

std::optional<Plan> build_plan(const Descriptor& graph, cudnnHandle_t handle) {
  for (const Descriptor& configuration : engine_configurations(graph)) {
    const std::vector<Descriptor> engine =
        configuration.get_all(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    bool repeats = true;
    for (const cudnnBackendNumericalNote_t note : engine.at(0).numerical_notes())
      if (note == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) repeats = false;
    if (!repeats) continue;
    Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
    if (plan.try_finalize() != CUDNN_STATUS_SUCCESS) continue;
    const std::int64_t bytes = plan.get_int(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
    return Plan{std::move(plan), bytes};
  }
  return std::nullopt;
}

void execute(cudnnHandle_t handle, const Plan& plan, std::initializer_list<Binding> bindings,
             void* workspace) {
  std::vector<std::int64_t> uids;
  std::vector<void*> data;
  for (const Binding& binding : bindings) {
    uids.push_back(binding.uid);
    data.push_back(binding.data);
  }
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, uids);
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, data);
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
  pack.finalize("cuDNN variant pack");
  check_cudnn(cudnnBackendExecute(handle, plan.descriptor.get(), pack.get()), "cudnnBackendExecute");
}

}  // namespace moecollab::ops::cuda
