// The operations of a graph: whether they fit, and what they compute. Values are f32 between operations and
// rounded to bf16 where a tensor is declared so.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "cudnn_on_host.hpp"
#include "moecollab/core/bfloat16.hpp"

namespace cudasim::dnn {
namespace {

using moecollab::BFloat16;

struct Operation {
  cudnnBackendDescriptorType_t type;
  std::vector<Tensor> in;
  Tensor out;
  cudnnPointwiseMode_t mode{};
  std::int64_t axis = -1;
  cudnnReduceTensorOp_t reduction{};
  std::vector<std::pair<char, Tensor>> sizes{};  // m, n, k of a product
};

Operation read(const Node& node) {
  const auto tensor = [&](cudnnBackendAttributeName_t name) { return Tensor(*node.node(name)); };
  switch (node.type) {
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR: {
      Operation o{node.type,
                  {tensor(CUDNN_ATTR_OPERATION_MATMUL_ADESC), tensor(CUDNN_ATTR_OPERATION_MATMUL_BDESC)},
                  tensor(CUDNN_ATTR_OPERATION_MATMUL_CDESC)};
      const std::pair<char, cudnnBackendAttributeName_t> sizes[] = {
          {'m', CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC},
          {'n', CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC},
          {'k', CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC}};
      for (const auto& [letter, name] : sizes)
        if (node.has(name)) o.sizes.emplace_back(letter, tensor(name));
      return o;
    }
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR: {
      Operation o{node.type,
                  {tensor(CUDNN_ATTR_OPERATION_POINTWISE_XDESC)},
                  tensor(CUDNN_ATTR_OPERATION_POINTWISE_YDESC)};
      const Ref how = node.node(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
      o.mode = how->value<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
      o.axis = how->value<std::int64_t>(CUDNN_ATTR_POINTWISE_AXIS, -1);
      for (const auto name : {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_ATTR_OPERATION_POINTWISE_TDESC})
        if (node.has(name)) o.in.push_back(tensor(name));
      return o;
    }
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR: {
      Operation o{node.type,
                  {tensor(CUDNN_ATTR_OPERATION_REDUCTION_XDESC)},
                  tensor(CUDNN_ATTR_OPERATION_REDUCTION_YDESC)};
      o.reduction = node.node(CUDNN_ATTR_OPERATION_REDUCTION_DESC)
                        ->value<cudnnReduceTensorOp_t>(CUDNN_ATTR_REDUCTION_OPERATOR);
      return o;
    }
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
      return {node.type,
              {tensor(CUDNN_ATTR_OPERATION_RESHAPE_XDESC)},
              tensor(CUDNN_ATTR_OPERATION_RESHAPE_YDESC)};
    default:
      throw Refusal{CUDNN_STATUS_NOT_SUPPORTED, "an operation that this stand-in does not know"};
  }
}

std::size_t num_inputs(cudnnPointwiseMode_t mode) {
  switch (mode) {
    case CUDNN_POINTWISE_EXP:
    case CUDNN_POINTWISE_LOG:
    case CUDNN_POINTWISE_GEN_INDEX:
      return 1;
    case CUDNN_POINTWISE_ADD:
    case CUDNN_POINTWISE_SUB:
    case CUDNN_POINTWISE_MUL:
    case CUDNN_POINTWISE_DIV:
    case CUDNN_POINTWISE_CMP_LT:
    case CUDNN_POINTWISE_CMP_GE:
    case CUDNN_POINTWISE_LOGICAL_AND:
      return 2;
    case CUDNN_POINTWISE_BINARY_SELECT:
      return 3;
    default:
      throw Refusal{CUDNN_STATUS_NOT_SUPPORTED, "a pointwise operation that this stand-in does not know"};
  }
}

void check_shapes(const Operation& o) {
  const auto fits = [](bool ok, const char* why) { require(ok, CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, why); };
  const auto is = [](const Tensor& t, cudnnDataType_t type, const char* why) {
    require(t.type == type, CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE, why);
  };
  const Axes& out = o.out.extents;
  if (o.type == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) {
    const Axes &a = o.in[0].extents, &b = o.in[1].extents;
    fits(a[2] == out[2] && b[3] == out[3] && a[3] == b[2], "extents of a product");
    fits(a[0] == out[0] && b[0] == out[0] && a[1] == out[1] && out[1] % b[1] == 0, "batches of a product");
    for (const Tensor& t : o.in) is(t, CUDNN_DATA_BFLOAT16, "a product of other than bf16");
    for (const auto& [letter, t] : o.sizes) {
      is(t, CUDNN_DATA_INT32, "a size that is not i32");
      fits(t.extents == Axes{out[0], 1, 1, 1}, "a size per sequence");
    }
  } else if (o.type == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR) {
    require(o.in.size() == num_inputs(o.mode), CUDNN_STATUS_BAD_PARAM, "number of operands");
    for (const Tensor& t : o.in)
      for (std::size_t i = 0; i < 4; ++i)
        fits(t.extents[i] == out[i] || t.extents[i] == 1, "pointwise extents");
    const bool flag = o.mode == CUDNN_POINTWISE_CMP_LT || o.mode == CUDNN_POINTWISE_CMP_GE ||
                      o.mode == CUDNN_POINTWISE_LOGICAL_AND;
    if (flag) is(o.out, CUDNN_DATA_BOOLEAN, "a comparison makes booleans");
    if (o.mode == CUDNN_POINTWISE_BINARY_SELECT) is(o.in[2], CUDNN_DATA_BOOLEAN, "a choice by booleans");
    if (o.mode == CUDNN_POINTWISE_GEN_INDEX) is(o.out, CUDNN_DATA_INT32, "an index is i32");
    fits(o.axis < 4, "axis of an index");
  } else if (o.type == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR) {
    for (std::size_t i = 0; i < 4; ++i)
      fits(o.in[0].extents[i] % out[i] == 0 && (i == 1 || out[i] == 1 || out[i] == o.in[0].extents[i]),
           "extents of a reduction");
  } else {
    fits(o.in[0].num_spanned() >= o.out.num_spanned(), "a reshape of fewer elements");
  }
}

using Place = std::array<std::int64_t, 4>;

// Elements of a tensor where its strides put them.
struct Values {
  Tensor tensor;
  std::vector<float> data;

  explicit Values(const Tensor& t)
      : tensor(t), data(static_cast<std::size_t>(t.num_spanned()), std::numeric_limits<float>::quiet_NaN()) {}

  std::size_t place(const Place& at) const {  // an axis of one element serves for all
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < at.size(); ++i) sum += tensor.extents[i] == 1 ? 0 : at[i] * tensor.strides[i];
    return static_cast<std::size_t>(sum);
  }
  float get(const Place& at) const { return data[place(at)]; }
  void set(const Place& at, float value) {
    data[place(at)] = tensor.type == CUDNN_DATA_BFLOAT16 ? static_cast<float>(BFloat16(value)) : value;
  }
};

template <class Extents, class F>
void for_each(const Extents& extents, F&& f) {
  Place at;
  for (at[0] = 0; at[0] < extents[0]; ++at[0])
    for (at[1] = 0; at[1] < extents[1]; ++at[1])
      for (at[2] = 0; at[2] < extents[2]; ++at[2])
        for (at[3] = 0; at[3] < extents[3]; ++at[3]) f(at);
}

class Run {
 public:
  explicit Run(const std::map<std::int64_t, void*>& memory) : memory_(memory) {}

  void one(const Operation& o) {
    Values out(o.out);
    if (o.type == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR)
      product(o, out);
    else if (o.type == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)
      pointwise(o, out);
    else if (o.type == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR)
      reduce(o, out);
    else
      reshape(o, out);
    if (!o.out.is_virtual) store(out);
    values_.insert_or_assign(o.out.uid, std::move(out));
  }

 private:
  const Values& value(const Tensor& t) {
    const auto at = values_.find(t.uid);
    if (at != values_.end()) return at->second;
    Values loaded(t);
    const void* const p = memory_.at(t.uid);
    for_each(t.extents, [&](const Place& i) {
      const std::size_t place = loaded.place(i);
      loaded.data[place] =
          t.type == CUDNN_DATA_BFLOAT16 ? static_cast<float>(static_cast<const BFloat16*>(p)[place])
          : t.type == CUDNN_DATA_INT32  ? static_cast<float>(static_cast<const std::int32_t*>(p)[place])
                                        : static_cast<const float*>(p)[place];
    });
    return values_.emplace(t.uid, std::move(loaded)).first->second;
  }

  void store(const Values& v) const {
    void* const p = memory_.at(v.tensor.uid);
    for_each(v.tensor.extents, [&](const Place& i) {
      const std::size_t place = v.place(i);
      if (v.tensor.type == CUDNN_DATA_BFLOAT16)
        static_cast<BFloat16*>(p)[place] = BFloat16(v.data[place]);
      else
        static_cast<float*>(p)[place] = v.data[place];
    });
  }

  // Rows and columns that the sizes leave out stay NaN, but for what completes a tile of 64: sizes save work
  // and are no masks. The same for the inner sum: up to the next 64 its terms count.
  void product(const Operation& o, Values& out) {
    const Values &a = value(o.in[0]), &b = value(o.in[1]);
    const Axes& extents = out.tensor.extents;
    const std::int64_t group = extents[1] / b.tensor.extents[1], depth = a.tensor.extents[3];
    for (std::int64_t batch = 0; batch < extents[0]; ++batch) {
      std::int64_t m = extents[2], n = extents[3], k = depth;
      for (const auto& [letter, size] : o.sizes) {
        std::int64_t& limit = letter == 'm' ? m : letter == 'n' ? n : k;
        const auto length = static_cast<std::int64_t>(value(size).get({batch, 0, 0, 0}));
        limit = std::min(limit, (length + 63) / 64 * 64);
      }
      const std::int64_t step_a = a.tensor.strides[3], step_b = b.tensor.strides[2];
      for (std::int64_t h = 0; h < extents[1]; ++h)
        for (std::int64_t i = 0; i < m; ++i)
          for (std::int64_t j = 0; j < n; ++j) {
            const float* const left = a.data.data() + a.place({batch, h, i, 0});
            const float* const right = b.data.data() + b.place({batch, h / group, 0, j});
            float sum = 0.0f;
            for (std::int64_t x = 0; x < k; ++x) sum += left[x * step_a] * right[x * step_b];
            out.set({batch, h, i, j}, sum);
          }
    }
  }

  void pointwise(const Operation& o, Values& out) {
    const Values* const x = &value(o.in[0]);
    const Values* const b = o.in.size() > 1 ? &value(o.in[1]) : x;
    const Values* const t = o.in.size() > 2 ? &value(o.in[2]) : x;
    for_each(out.tensor.extents, [&](const Place& at) {
      const float left = x->get(at), right = b->get(at);
      out.set(at, [&]() -> float {
        switch (o.mode) {
          case CUDNN_POINTWISE_EXP:
            return std::exp(left);
          case CUDNN_POINTWISE_LOG:
            return std::log(left);
          case CUDNN_POINTWISE_GEN_INDEX:
            return static_cast<float>(at[static_cast<std::size_t>(o.axis)]);
          case CUDNN_POINTWISE_ADD:
            return left + right;
          case CUDNN_POINTWISE_SUB:
            return left - right;
          case CUDNN_POINTWISE_MUL:
            return left * right;
          case CUDNN_POINTWISE_DIV:
            return left / right;
          case CUDNN_POINTWISE_CMP_LT:
            return left < right ? 1.0f : 0.0f;
          case CUDNN_POINTWISE_CMP_GE:
            return left >= right ? 1.0f : 0.0f;
          case CUDNN_POINTWISE_LOGICAL_AND:
            return left != 0.0f && right != 0.0f ? 1.0f : 0.0f;
          default:  // a choice
            return t->get(at) != 0.0f ? left : right;
        }
      }());
    });
  }

  void reduce(const Operation& o, Values& out) {
    const Values& x = value(o.in[0]);
    Place blocks;
    for (std::size_t i = 0; i < 4; ++i) blocks[i] = x.tensor.extents[i] / out.tensor.extents[i];
    const bool max = o.reduction == CUDNN_REDUCE_TENSOR_MAX;
    for_each(out.tensor.extents, [&](const Place& at) {
      float result = max ? -HUGE_VALF : 0.0f;
      for_each(blocks, [&](const Place& in) {
        Place from;
        for (std::size_t i = 0; i < 4; ++i) from[i] = at[i] * blocks[i] + in[i];
        const float value = x.get(from);
        result = max ? (value > result || std::isnan(value) ? value : result) : result + value;
      });
      out.set(at, result);
    });
  }

  // The same memory seen with other extents and strides.
  void reshape(const Operation& o, Values& out) {
    const Values& x = value(o.in[0]);
    for_each(out.tensor.extents, [&](const Place& at) { out.set(at, x.data[out.place(at)]); });
  }

  const std::map<std::int64_t, void*>& memory_;
  std::map<std::int64_t, Values> values_;
};

}  // namespace

Tensor::Tensor(const Node& node)
    : uid(node.value<std::int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID)),
      type(node.value<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE)),
      extents(node.list<std::int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS)),
      strides(node.list<std::int64_t>(CUDNN_ATTR_TENSOR_STRIDES)),
      alignment(node.value<std::int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT)),
      is_virtual(node.value<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL)),
      by_value(node.value<bool>(CUDNN_ATTR_TENSOR_IS_BY_VALUE)) {
  require(extents.size() == 4 && strides.size() == 4, CUDNN_STATUS_NOT_SUPPORTED,
          "a tensor without four axes");
  for (std::size_t i = 0; i < 4; ++i)
    require(extents[i] > 0 && strides[i] > 0, CUDNN_STATUS_BAD_PARAM, "an extent or stride below one");
  require(!(is_virtual && by_value), CUDNN_STATUS_BAD_PARAM, "a virtual tensor by value");
  require(!by_value || (type == CUDNN_DATA_FLOAT && num_spanned() == 1), CUDNN_STATUS_NOT_SUPPORTED,
          "by value only one f32");
}
std::int64_t Tensor::num_spanned() const {
  std::int64_t last = 0;
  for (std::size_t i = 0; i < 4; ++i) last += (extents[i] - 1) * strides[i];
  return last + 1;
}
std::int64_t Tensor::element_bytes() const {
  return type == CUDNN_DATA_BFLOAT16 ? 2 : type == CUDNN_DATA_BOOLEAN ? 1 : 4;
}

void check_graph(const std::vector<Ref>& operations) {
  std::set<std::int64_t> known;
  for (const Ref& node : operations) {
    const Operation o = read(*node);
    check_shapes(o);
    for (const Tensor& t : o.in)
      require(!t.is_virtual || known.count(t.uid) == 1, CUDNN_STATUS_BAD_PARAM,
              "a virtual tensor is used before it is made");
    require(known.insert(o.out.uid).second, CUDNN_STATUS_BAD_PARAM, "a tensor is made twice");
    require(!o.out.by_value, CUDNN_STATUS_BAD_PARAM, "a result by value");
  }
}

bool has_engine(const std::vector<Ref>& operations) {
  for (const Ref& node : operations) {
    if (node->type != CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) continue;
    const std::int64_t width = Tensor(*node->node(CUDNN_ATTR_OPERATION_MATMUL_ADESC)).extents[3];
    return width % 8 == 0 && width <= 128;
  }
  return false;
}

std::int64_t workspace_bytes(const std::vector<Ref>& operations) {
  std::int64_t most = 0;  // backward keeps its gradients of the scores in memory
  for (const Ref& node : operations) {
    if (node->type != CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR) continue;
    const Tensor t(*node->node(CUDNN_ATTR_OPERATION_RESHAPE_YDESC));
    most = std::max(most, t.num_spanned() * t.element_bytes());
  }
  return 256 + most;
}

std::map<std::int64_t, Tensor> memory_tensors(const std::vector<Ref>& operations) {
  std::map<std::int64_t, Tensor> all;
  for (const Ref& node : operations) {
    const Operation o = read(*node);
    std::vector<Tensor> tensors = o.in;
    tensors.push_back(o.out);
    for (const auto& size : o.sizes) tensors.push_back(size.second);
    for (const Tensor& t : tensors)
      if (!t.is_virtual) all.emplace(t.uid, t);
  }
  return all;
}

void run_graph(const std::vector<Ref>& operations, const std::map<std::int64_t, void*>& memory) {
  Run run(memory);
  for (const Ref& node : operations) run.one(read(*node));
}

}  // namespace cudasim::dnn
