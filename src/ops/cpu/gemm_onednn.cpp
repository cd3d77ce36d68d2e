#include "ops/cpu/gemm.hpp"

#include <omp.h>
#include <dnnl.hpp>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>

#include "moecollab/core/error.hpp"
#include "ops/cpu/scratch.hpp"

namespace moecollab::ops::cpu {
namespace {

using DataType = dnnl::memory::data_type;

// oneDNN asks OpenMP for its thread count, when it builds a primitive and when it runs one. Both must see one
// thread: the partition of a sum, and with it the bits, would else follow the thread count.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

struct Key {
  GemmShape shape;
  DataType type_ab, type_c;
  bool accumulate;
  bool operator==(const Key& o) const {
    const GemmShape &s = shape, &t = o.shape;
    return s.m == t.m && s.n == t.n && s.k == t.k && s.lda == t.lda && s.ldb == t.ldb && s.ldc == t.ldc &&
           s.trans_a == t.trans_a && s.trans_b == t.trans_b && type_ab == o.type_ab && type_c == o.type_c &&
           accumulate == o.accumulate;
  }
};

struct KeyHash {
  std::size_t operator()(const Key& key) const {
    const GemmShape& s = key.shape;
    std::uint64_t h = static_cast<std::uint64_t>(key.type_ab) * 64 +
                      static_cast<std::uint64_t>(key.type_c) * 8 + (s.trans_a == Trans::yes ? 4u : 0u) +
                      (s.trans_b == Trans::yes ? 2u : 0u) + (key.accumulate ? 1u : 0u);
    for (const std::int64_t v : {s.m, s.n, s.k, s.lda, s.ldb, s.ldc})
      h = (h ^ static_cast<std::uint64_t>(v)) * 0x9e3779b97f4a7c15ull, h ^= h >> 29;
    return h;
  }
};

// The strides of an operand of op()-shape [rows, cols], stored with `ld` elements between stored rows.
dnnl::memory::dims strides(Trans trans, std::int64_t ld) {
  return trans == Trans::yes ? dnnl::memory::dims{1, ld} : dnnl::memory::dims{ld, 1};
}

struct Descs {
  dnnl::memory::desc a, b, c;
  explicit Descs(const Key& key)
      : a({key.shape.m, key.shape.k}, key.type_ab, strides(key.shape.trans_a, key.shape.lda)),
        b({key.shape.k, key.shape.n}, key.type_ab, strides(key.shape.trans_b, key.shape.ldb)),
        c({key.shape.m, key.shape.n}, key.type_c, strides(Trans::no, key.shape.ldc)) {}
};

dnnl::matmul::primitive_desc describe(const Key& key, const dnnl::engine& engine) {
  dnnl::primitive_attr attr;
  // The library's own scratchpad is shared between threads that run one primitive: wrong results, silently.
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (key.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attr.set_post_ops(sum);
  }
  const Descs descs(key);
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul::primitive_desc(engine, descs.a, descs.b, descs.c, attr);
#else
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(descs.a, descs.b, descs.c), attr, engine);
#endif
}

struct Primitive {
  dnnl::matmul matmul;
  dnnl::memory::desc scratchpad;
  std::unordered_map<int, dnnl::memory> args;
};

// One thread's oneDNN: engine, stream, and the primitives it has built.
class Library {
 public:
  void run(const Key& key, const void* a, const void* b, void* c) {
    // Shapes that come back (whole tiles) get a primitive of their own; ragged ones, which change with every
    // batch, share one primitive without sizes, since building one costs as much as running it. The choice
    // depends on the shape alone, because the two kernels may differ in the last bit.
    const bool exact = key.shape.m % 32 == 0 && key.shape.k % 32 == 0 && key.shape.n % 16 == 0;
    if (exact) {
      Primitive& p = find(key);
      p.args.at(DNNL_ARG_SRC).set_data_handle(const_cast<void*>(a));
      p.args.at(DNNL_ARG_WEIGHTS).set_data_handle(const_cast<void*>(b));
      p.args.at(DNNL_ARG_DST).set_data_handle(c);
      execute(p);
      return;
    }
    Key any = key;
    const std::int64_t runtime = DNNL_RUNTIME_DIM_VAL;
    any.shape.m = any.shape.n = any.shape.k = any.shape.lda = any.shape.ldb = any.shape.ldc = runtime;
    Primitive& p = find(any);
    const Descs descs(key);
    p.args[DNNL_ARG_SRC] = dnnl::memory(descs.a, engine_, const_cast<void*>(a));
    p.args[DNNL_ARG_WEIGHTS] = dnnl::memory(descs.b, engine_, const_cast<void*>(b));
    p.args[DNNL_ARG_DST] = dnnl::memory(descs.c, engine_, c);
    execute(p);
  }

 private:
  Primitive& find(const Key& key) {
    const auto found = primitives_.find(key);
    if (found != primitives_.end()) return found->second;
    constexpr std::size_t kMaxPrimitives = 512;
    if (primitives_.size() >= kMaxPrimitives) primitives_.clear();
    const auto desc = describe(key, engine_);
    Primitive made{dnnl::matmul(desc), desc.scratchpad_desc(), {}};
    if (key.shape.m != DNNL_RUNTIME_DIM_VAL) {
      const Descs descs(key);
      made.args.emplace(DNNL_ARG_SRC, dnnl::memory(descs.a, engine_, nullptr));
      made.args.emplace(DNNL_ARG_WEIGHTS, dnnl::memory(descs.b, engine_, nullptr));
      made.args.emplace(DNNL_ARG_DST, dnnl::memory(descs.c, engine_, nullptr));
    }
    made.args.emplace(DNNL_ARG_SCRATCHPAD, dnnl::memory(made.scratchpad, engine_, nullptr));
    return primitives_.emplace(key, std::move(made)).first->second;
  }

  void execute(Primitive& p) {
    const auto bytes = static_cast<std::int64_t>(p.scratchpad.get_size());
    p.args.at(DNNL_ARG_SCRATCHPAD).set_data_handle(bytes == 0 ? nullptr : scratch_.take<char>(bytes));
    p.matmul.execute(stream_, p.args);
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  Scratch scratch_;
  std::unordered_map<Key, Primitive, KeyHash> primitives_;
};

void run(const Key& key, const void* a, const void* b, void* c) {
  thread_local Library library;
  const OneThread one_thread;
  try {
    library.run(key, a, b, c);
  } catch (const dnnl::error& e) {
    throw InternalError(std::string("oneDNN refused a matrix product of ") + std::to_string(key.shape.m) +
                        "x" + std::to_string(key.shape.n) + "x" + std::to_string(key.shape.k) + ": " +
                        e.what());
  }
}

// True when nothing is left to do: no output, or a sum over nothing.
template <class C>
bool finished(const GemmShape& s, bool accumulate, C* c) {
  if (s.m == 0 || s.n == 0) return true;
  if (s.k != 0) return false;
  if (!accumulate)
    for (std::int64_t i = 0; i < s.m; ++i) std::fill_n(c + i * s.ldc, s.n, C{});
  return true;
}

}  // namespace

bool has_native_bf16() {
  static const bool native = [] {
    const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
    constexpr auto kWanted = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
    return (isa & kWanted) == kWanted;
  }();
  return native;
}

void gemm(const GemmShape& shape, const float* a, const float* b, float beta, float* c) {
  if (finished(shape, beta != 0.0f, c)) return;
  run({shape, DataType::f32, DataType::f32, beta != 0.0f}, a, b, c);
}

void gemm(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta, float* c) {
  if (finished(shape, beta != 0.0f, c)) return;
  if (!has_native_bf16()) return gemm_widened(shape, a, b, beta, c);
  run({shape, DataType::bf16, DataType::f32, beta != 0.0f}, a, b, c);
}

void gemm(const GemmShape& shape, const BFloat16* a, const BFloat16* b, float beta, BFloat16* c) {
  if (beta != 0.0f)
    throw InternalError("a bf16 result is rounded once, so it cannot accumulate: beta must be 0");
  if (finished(shape, false, c)) return;
  if (!has_native_bf16()) return gemm_widened(shape, a, b, beta, c);
  run({shape, DataType::bf16, DataType::bf16, false}, a, b, c);
}

}  // namespace moecollab::ops::cpu
