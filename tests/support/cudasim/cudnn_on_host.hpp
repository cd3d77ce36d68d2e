// A stand-in for cuDNN's graph interface on the emulated device: it takes the descriptors that the library
// takes, refuses what the library is known to refuse, and runs the operations of a graph one by one with
// plain loops. A graph that says something else than its author meant shows in the values.
#pragma once

#include <cudnn_graph.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace cudasim::dnn {

struct Node;
using Ref = std::shared_ptr<Node>;

struct Attribute {
  std::int64_t num = 0;
  std::vector<char> bytes;
  std::vector<Ref> nodes;
};

// What a descriptor refers to.
struct Node {
  cudnnBackendDescriptorType_t type{};
  bool finalized = false;
  std::map<cudnnBackendAttributeName_t, Attribute> attributes;

  bool has(cudnnBackendAttributeName_t name) const { return attributes.count(name) != 0; }
  template <class T>
  std::vector<T> list(cudnnBackendAttributeName_t name) const {
    const auto at = attributes.find(name);
    if (at == attributes.end()) return {};
    std::vector<T> values(static_cast<std::size_t>(at->second.num));
    if (!values.empty()) std::memcpy(values.data(), at->second.bytes.data(), values.size() * sizeof(T));
    return values;
  }
  template <class T>
  T value(cudnnBackendAttributeName_t name, T otherwise = T{}) const {
    const auto at = attributes.find(name);
    if (at != attributes.end() && at->second.num > 0)
      std::memcpy(&otherwise, at->second.bytes.data(), sizeof otherwise);
    return otherwise;
  }
  Ref node(cudnnBackendAttributeName_t name) const {
    const auto at = attributes.find(name);
    return at == attributes.end() ? nullptr : at->second.nodes.at(0);
  }
};

struct Refusal {
  cudnnStatus_t status;
  std::string why;
};
inline void require(bool ok, cudnnStatus_t status, const std::string& why) {
  if (!ok) throw Refusal{status, why};
}

using Axes = std::vector<std::int64_t>;
struct Tensor {
  std::int64_t uid = 0;
  cudnnDataType_t type{};
  Axes extents, strides;
  std::int64_t alignment = 0;
  bool is_virtual = false, by_value = false;

  explicit Tensor(const Node& node);
  std::int64_t num_spanned() const;  // elements from the first to the last
  std::int64_t element_bytes() const;
};

// The operations of a graph fit each other: shapes, types, and that every virtual tensor is made before it is
// used.
void check_graph(const std::vector<Ref>& operations);
// An engine takes the graph: attention in bf16 over heads of at most 128 columns, a multiple of 8.
bool has_engine(const std::vector<Ref>& operations);
std::int64_t workspace_bytes(const std::vector<Ref>& operations);
// Memory behind the uids of all tensors that are not virtual: on the device, or by value on the host.
std::map<std::int64_t, Tensor> memory_tensors(const std::vector<Ref>& operations);
void run_graph(const std::vector<Ref>& operations, const std::map<std::int64_t, void*>& memory);

}  // namespace cudasim::dnn
