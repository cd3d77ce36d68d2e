// The graph interface of cuDNN (cudnn_graph.h) with owners for its descriptors: tensors and operations are
// described, joined to a graph, and an engine of the library is asked for a plan that runs it.
#pragma once

#include <cudnn_graph.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <source_location>
#include <utility>
#include <vector>

namespace moecollab::ops::cuda {

// Throws UsageError when the device is out of memory or the library does not fit the driver, else
// InternalError.
void check_cudnn(cudnnStatus_t status, const char* call,
                 std::source_location where = std::source_location::current());

// Shared: a graph keeps what its operations refer to alive.
class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type);

  cudnnBackendDescriptor_t get() const { return handle_.get(); }

  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                  const std::vector<T>& values) {
    set_bytes(name, type, static_cast<std::int64_t>(values.size()), values.data());
    return *this;
  }
  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, T value) {
    set_bytes(name, type, 1, &value);
    return *this;
  }
  Descriptor& set(cudnnBackendAttributeName_t name, std::int64_t value) {
    return set(name, CUDNN_TYPE_INT64, value);
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& other);
  Descriptor& set(cudnnBackendAttributeName_t name, const std::vector<Descriptor>& others);
  Descriptor& finalize(const char* what);
  // For questions: what the library says, without an exception.
  cudnnStatus_t try_finalize();

  std::int64_t get_int(cudnnBackendAttributeName_t name) const;
  // The elements of a list of descriptors, or of values, of at most `limit`.
  std::vector<Descriptor> get_all(cudnnBackendAttributeName_t name, cudnnBackendDescriptorType_t type) const;
  std::vector<cudnnBackendNumericalNote_t> numerical_notes() const;  // of an engine

 private:
  void set_bytes(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t num,
                 const void* values);

  std::shared_ptr<void> handle_;
  std::vector<Descriptor> kept_;  // what this one refers to
};

using Axes = std::vector<std::int64_t>;

struct GraphTensor {
  Descriptor descriptor;
  Axes extents;
};

// Operations in the order of their data. Products, pointwise operations and reductions compute in f32.
class Graph {
 public:
  // A tensor in memory, found at execution by `uid`. Strides in elements; none: packed.
  GraphTensor input(std::int64_t uid, Axes extents, Axes strides = {},
                    cudnnDataType_t type = CUDNN_DATA_BFLOAT16);
  GraphTensor output(std::int64_t uid, Axes extents, Axes strides = {},
                     cudnnDataType_t type = CUDNN_DATA_BFLOAT16) {
    return input(uid, std::move(extents), std::move(strides), type);
  }
  GraphTensor scalar(std::int64_t uid);  // f32 in host memory
  // Between operations only: it never need exist in memory.
  GraphTensor between(Axes extents, cudnnDataType_t type = CUDNN_DATA_FLOAT, Axes strides = {});

  // How much of the rows, columns and inner products of a product counts, per sequence: [B,1,1,1] i32.
  struct Sizes {
    const GraphTensor *rows = nullptr, *columns = nullptr, *inner = nullptr;
  };
  GraphTensor product(const GraphTensor& a, const GraphTensor& b, const GraphTensor& c, const Sizes& sizes);
  GraphTensor pointwise(cudnnPointwiseMode_t mode, const std::vector<GraphTensor>& in, const GraphTensor& out,
                        cudnnDataType_t math = CUDNN_DATA_FLOAT);
  GraphTensor index(const GraphTensor& like, std::int64_t axis);  // i32: the position along `axis`
  GraphTensor reduce(cudnnReduceTensorOp_t how, const GraphTensor& in, const GraphTensor& out);
  GraphTensor reshape(const GraphTensor& in, const GraphTensor& out);

  // With a handle for the handle's device; without one only for questions about a described device.
  Descriptor finish(cudnnHandle_t handle);

 private:
  GraphTensor add(Descriptor& operation, const GraphTensor& out, const char* what);

  std::vector<Descriptor> operations_;
  std::int64_t next_uid_ = 1000;
};

// The configurations of engines that the library recommends for a graph, best first. Empty when none can run
// it. `device`: a description, for graphs without a handle.
std::vector<Descriptor> engine_configurations(const Descriptor& graph, const Descriptor* device = nullptr);

struct Plan {
  Descriptor descriptor;
  std::int64_t workspace_bytes = 0;
};
// The first configuration that the library can build for the handle's device; none when there is none.
std::optional<Plan> build_plan(const Descriptor& graph, cudnnHandle_t handle);

struct Binding {
  std::int64_t uid;
  void* data;
};
void execute(cudnnHandle_t handle, const Plan& plan, std::initializer_list<Binding> bindings,
             void* workspace);

}  // namespace moecollab::ops::cuda
