#include "cudnn_on_host.hpp"

#include <algorithm>
#include <cstdio>
#include <functional>

#include "emulator.hpp"
#include "runtime.hpp"

struct cudnnContext {
  cudaStream_t stream = nullptr;
};

namespace cudasim::dnn {
namespace {

thread_local std::string last_error;

struct Known {
  cudnnBackendAttributeName_t name;
  cudnnBackendDescriptorType_t owner;
  cudnnBackendAttributeType_t type;
  bool required;
};
constexpr auto kDescriptor = CUDNN_TYPE_BACKEND_DESCRIPTOR;
constexpr Known kKnown[] = {
    {CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_TYPE_INT64, true},
    {CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_TYPE_DATA_TYPE, true},
    {CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_TYPE_INT64, true},
    {CUDNN_ATTR_TENSOR_STRIDES, CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_TYPE_INT64, true},
    {CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_TYPE_INT64, true},
    {CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_TYPE_BOOLEAN, false},
    {CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_TYPE_BOOLEAN, false},
    {CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_BACKEND_MATMUL_DESCRIPTOR, CUDNN_TYPE_DATA_TYPE, true},
    {CUDNN_ATTR_OPERATION_MATMUL_ADESC, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_OPERATION_MATMUL_BDESC, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_OPERATION_MATMUL_CDESC, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_OPERATION_MATMUL_DESC, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, kDescriptor,
     false},
    {CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, kDescriptor,
     false},
    {CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, kDescriptor,
     false},
    {CUDNN_ATTR_POINTWISE_MODE, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_TYPE_POINTWISE_MODE, true},
    {CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_TYPE_DATA_TYPE, true},
    {CUDNN_ATTR_POINTWISE_AXIS, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_TYPE_INT64, false},
    {CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, kDescriptor,
     true},
    {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, kDescriptor, false},
    {CUDNN_ATTR_OPERATION_POINTWISE_TDESC, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, kDescriptor, false},
    {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_BACKEND_REDUCTION_DESCRIPTOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE,
     true},
    {CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_BACKEND_REDUCTION_DESCRIPTOR, CUDNN_TYPE_DATA_TYPE, true},
    {CUDNN_ATTR_OPERATION_REDUCTION_DESC, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_OPERATION_REDUCTION_XDESC, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_OPERATION_REDUCTION_YDESC, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_OPERATION_RESHAPE_XDESC, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_OPERATION_RESHAPE_YDESC, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_TYPE_HANDLE, true},
    {CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_TYPE_HEUR_MODE, true},
    {CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_TYPE_HANDLE, true},
    {CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, kDescriptor, true},
    {CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_TYPE_INT64, true},
    {CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_TYPE_VOID_PTR, true},
    {CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_TYPE_VOID_PTR, true},
};

std::size_t element_size(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
      return 8;
    case CUDNN_TYPE_BOOLEAN:
      return sizeof(bool);
    default:
      return sizeof(int);  // enumerations
  }
}

template <class T>
void put(Node& node, cudnnBackendAttributeName_t name, std::vector<T> values) {
  Attribute& a = node.attributes[name];
  a.num = static_cast<std::int64_t>(values.size());
  a.bytes.resize(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(a.bytes.data(), values.data(), a.bytes.size());
}
void put(Node& node, cudnnBackendAttributeName_t name, std::vector<Ref> nodes) {
  Attribute& a = node.attributes[name];
  a.num = static_cast<std::int64_t>(nodes.size());
  a.nodes = std::move(nodes);
}
Ref made(cudnnBackendDescriptorType_t type) {
  auto node = std::make_shared<Node>();
  node->type = type;
  node->finalized = true;
  return node;
}

// Two configurations, and the one that the library likes best says that its bits differ from run to run: who
// needs the same bits has to pass it over.
enum : std::int64_t { kRestlessEngine = 0, kEngine = 1 };
Ref configuration_of(const Ref& graph, std::int64_t index) {
  const Ref engine = made(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  put(*engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, std::vector<std::int64_t>{index});
  std::vector<cudnnBackendNumericalNote_t> notes{CUDNN_NUMERICAL_NOTE_TENSOR_CORE};
  if (index == kRestlessEngine) notes.push_back(CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC);
  put(*engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, notes);
  put(*engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, std::vector<Ref>{graph});
  const Ref configuration = made(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  put(*configuration, CUDNN_ATTR_ENGINECFG_ENGINE, std::vector<Ref>{engine});
  return configuration;
}

Node& node_of(cudnnBackendDescriptor_t descriptor) {
  require(descriptor != nullptr, CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "no descriptor");
  return **static_cast<Ref*>(descriptor);
}
const std::vector<Ref>& operations_of(const Node& plan) {
  const Ref engine = plan.node(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->node(CUDNN_ATTR_ENGINECFG_ENGINE);
  return engine->node(CUDNN_ATTR_ENGINE_OPERATION_GRAPH)->attributes.at(CUDNN_ATTR_OPERATIONGRAPH_OPS).nodes;
}

void finalize(Node& node) {
  require(!node.finalized, CUDNN_STATUS_BAD_PARAM, "finalized twice");
  for (const Known& known : kKnown)
    require(known.owner != node.type || !known.required || node.has(known.name),
            CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED,
            "attribute " + std::to_string(known.name) + " of a descriptor of type " +
                std::to_string(node.type) + " is not set");
  switch (node.type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
      Tensor{node};
      break;
    case CUDNN_BACKEND_POINTWISE_DESCRIPTOR:
      require(node.value<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE) != CUDNN_POINTWISE_GEN_INDEX ||
                  node.has(CUDNN_ATTR_POINTWISE_AXIS),
              CUDNN_STATUS_BAD_PARAM, "an index needs an axis");
      break;
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
      check_graph(node.attributes.at(CUDNN_ATTR_OPERATIONGRAPH_OPS).nodes);
      break;
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR: {
      const Ref graph = node.node(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
      const bool first = node.value<cudnnBackendHeurMode_t>(CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_A;
      require(first && has_engine(graph->attributes.at(CUDNN_ATTR_OPERATIONGRAPH_OPS).nodes),
              CUDNN_STATUS_NOT_SUPPORTED, "no engine for this graph");
      put(node, CUDNN_ATTR_ENGINEHEUR_RESULTS,
          std::vector<Ref>{configuration_of(graph, kRestlessEngine), configuration_of(graph, kEngine)});
      break;
    }
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
      put(node, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
          std::vector<std::int64_t>{workspace_bytes(operations_of(node))});
      break;
    default:
      break;
  }
  node.finalized = true;
}

void set(Node& node, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t num,
         const void* values) {
  require(!node.finalized, CUDNN_STATUS_NOT_SUPPORTED, "a finalized descriptor cannot be changed");
  require(num > 0 && values != nullptr, CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "no values");
  const Known* const known = std::find_if(std::begin(kKnown), std::end(kKnown), [&](const Known& k) {
    return k.name == name && k.owner == node.type;
  });
  require(known != std::end(kKnown), CUDNN_STATUS_NOT_SUPPORTED,
          "attribute " + std::to_string(name) + " is not known for descriptors of type " +
              std::to_string(node.type));
  require(known->type == type, CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE,
          "attribute " + std::to_string(name) + " has another type");
  Attribute a;
  a.num = num;
  if (type == kDescriptor) {
    const auto* const descriptors = static_cast<const cudnnBackendDescriptor_t*>(values);
    for (std::int64_t i = 0; i < num; ++i) {
      require(node_of(descriptors[i]).finalized, CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED,
              "attribute " + std::to_string(name) + " refers to a descriptor that is not finalized");
      a.nodes.push_back(*static_cast<Ref*>(descriptors[i]));
    }
  } else {
    const auto* const bytes = static_cast<const char*>(values);
    a.bytes.assign(bytes, bytes + static_cast<std::size_t>(num) * element_size(type));
  }
  node.attributes[name] = std::move(a);
}

void get(const Node& node, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
         std::int64_t requested, std::int64_t* num, void* values) {
  require(node.finalized, CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "the descriptor is not finalized");
  require(node.has(name), CUDNN_STATUS_NOT_SUPPORTED, "there is no attribute " + std::to_string(name));
  const Attribute& a = node.attributes.at(name);
  if (num != nullptr) *num = a.num;
  for (std::int64_t i = 0; i < std::min(requested, a.num); ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (type == kDescriptor) {
      // The caller made descriptors of the right kind for us to fill.
      Ref& target = *static_cast<Ref*>(static_cast<cudnnBackendDescriptor_t*>(values)[i]);
      require(target->type == a.nodes[at]->type, CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "of another kind");
      target = a.nodes[at];
    } else {
      const std::size_t size = element_size(type);
      std::memcpy(static_cast<char*>(values) + at * size, a.bytes.data() + at * size, size);
    }
  }
}

// The bytes that a tensor occupies, from `p` on, lie in one allocation of the device.
void check_memory(const std::string& what, const void* p, std::int64_t bytes, std::int64_t alignment) {
  require(p != nullptr, CUDNN_STATUS_BAD_PARAM_NULL_POINTER, what + " has no memory");
  require(reinterpret_cast<std::uintptr_t>(p) % static_cast<std::uintptr_t>(alignment) == 0,
          CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER, what + " lies at no multiple of its alignment");
  const Allocation* const in = find_allocation(p, static_cast<std::size_t>(bytes));
  require(in != nullptr && !in->pinned, CUDNN_STATUS_EXECUTION_FAILED,
          what + " does not lie in device memory");
}

void execute(cudnnContext& handle, const Node& plan, const Node& pack) {
  require(plan.finalized && pack.finalized, CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED,
          "plan or pack not finalized");
  const Ref engine = plan.node(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->node(CUDNN_ATTR_ENGINECFG_ENGINE);
  require(engine->value<std::int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX) != kRestlessEngine,
          CUDNN_STATUS_EXECUTION_FAILED, "this engine does not give the same bits twice");
  const auto uids = pack.list<std::int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto pointers = pack.list<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  require(uids.size() == pointers.size(), CUDNN_STATUS_BAD_PARAM, "as many uids as pointers");
  std::map<std::int64_t, void*> memory;
  for (std::size_t i = 0; i < uids.size(); ++i)
    require(memory.emplace(uids[i], pointers[i]).second, CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES,
            "uid twice");

  const Lock lock(runtime().mutex);
  const auto workspace = pack.value<char*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
  const auto bytes = plan.value<std::int64_t>(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
  if (bytes > 0) check_memory("the workspace", workspace, bytes, 16);
  std::map<std::int64_t, float> scalars;  // by value: read now
  for (const auto& [uid, tensor] : memory_tensors(operations_of(plan))) {
    const std::string name = "the tensor with uid " + std::to_string(uid);
    require(memory.count(uid) == 1, CUDNN_STATUS_BAD_PARAM, name + " has no memory");
    if (tensor.by_value) {
      scalars[uid] = *static_cast<const float*>(memory[uid]);
      continue;
    }
    const std::int64_t size = tensor.num_spanned() * tensor.element_bytes();
    check_memory(name, memory[uid], size, tensor.alignment);
    const auto* const begin = static_cast<const char*>(memory[uid]);
    require(begin + size <= workspace || workspace + bytes <= begin, CUDNN_STATUS_EXECUTION_FAILED,
            name + " overlaps the workspace");
  }
  const std::vector<Ref> operations = operations_of(plan);
  const cudaError_t error = enqueue(handle.stream, [operations, memory, scalars, workspace, bytes]() mutable {
    std::memset(workspace, 0xff, static_cast<std::size_t>(bytes));
    for (auto& [uid, value] : scalars) memory[uid] = &value;
    run_graph(operations, memory);
    return cudaSuccess;
  });
  require(error == cudaSuccess, CUDNN_STATUS_EXECUTION_FAILED, cudaGetErrorString(error));
}

cudnnStatus_t guarded(const std::function<void()>& work) {
  try {
    work();
    return CUDNN_STATUS_SUCCESS;
  } catch (const Refusal& refusal) {
    last_error = refusal.why;
    return refusal.status;
  }
}

}  // namespace
}  // namespace cudasim::dnn

using namespace cudasim::dnn;

const char* cudnnGetErrorString(cudnnStatus_t status) {
  return status == CUDNN_STATUS_SUCCESS                            ? "CUDNN_STATUS_SUCCESS"
         : CUDNN_STATUS_CATEGORY(static_cast<int>(status)) == 2000 ? "CUDNN_STATUS_BAD_PARAM"
         : CUDNN_STATUS_CATEGORY(static_cast<int>(status)) == 3000 ? "CUDNN_STATUS_NOT_SUPPORTED"
                                                                   : "CUDNN_STATUS_EXECUTION_FAILED";
}
void cudnnGetLastErrorString(char* message, std::size_t max_size) {
  std::snprintf(message, max_size, "%s", last_error.c_str());
  last_error.clear();
}
std::size_t cudnnGetVersion() { return CUDNN_VERSION; }
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  if (cudasim::num_devices() == 0) return CUDNN_STATUS_NOT_INITIALIZED;
  *handle = new cudnnContext;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t* descriptor) {
  auto node = std::make_shared<Node>();
  node->type = type;
  *descriptor = new Ref(std::move(node));
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete static_cast<Ref*>(descriptor);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  return guarded([&] { finalize(node_of(descriptor)); });
}
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, std::int64_t num,
                                       const void* values) {
  return guarded([&] { set(node_of(descriptor), name, type, num, values); });
}
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const descriptor,
                                       cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                                       std::int64_t requested, std::int64_t* num, void* values) {
  return guarded([&] { get(node_of(descriptor), name, type, requested, num, values); });
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
  return guarded([&] { execute(*handle, node_of(plan), node_of(pack)); });
}
