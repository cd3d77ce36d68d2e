#include "moecollab/core/random.hpp"

#include <Random123/philox.h>

#include <cmath>
#include <numbers>

#include "moecollab/core/error.hpp"

namespace moecollab {

std::array<std::uint32_t, 4> random_words(std::uint64_t key, std::uint64_t stream, std::uint64_t index) {
  const r123::Philox4x32::ctr_type counter{
      {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
       static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)}};
  const r123::Philox4x32::key_type k{
      {static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32)}};
  const auto words = r123::Philox4x32()(counter, k);
  return {words[0], words[1], words[2], words[3]};
}

namespace {
std::uint64_t word64(const std::array<std::uint32_t, 4>& w, int half) {
  return (static_cast<std::uint64_t>(w[static_cast<std::size_t>(2 * half)]) << 32) |
         w[static_cast<std::size_t>(2 * half + 1)];
}
double unit(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1.0p-53; }
}  // namespace

double random_uniform(std::uint64_t key, std::uint64_t stream, std::uint64_t index) {
  return unit(word64(random_words(key, stream, index), 0));
}

std::int64_t random_below(std::uint64_t key, std::uint64_t stream, std::uint64_t index, std::int64_t bound) {
  if (bound <= 0) throw InternalError("random_below needs a positive bound, got " + std::to_string(bound));
  __extension__ using Wide = unsigned __int128;
  const Wide bits = word64(random_words(key, stream, index), 0);
  return static_cast<std::int64_t>((bits * static_cast<Wide>(bound)) >> 64);
}

namespace {
template <class T>
void fill(std::uint64_t key, std::uint64_t stream, double std, T* out, std::int64_t n) {
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < n; ++i) {
    // Box-Muller on one counter per element.
    const auto words = random_words(key, stream, static_cast<std::uint64_t>(i));
    const double u = 1.0 - unit(word64(words, 0));  // (0, 1]
    const double v = unit(word64(words, 1));
    const double z = std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v) * std;
    if constexpr (std::is_same_v<T, BFloat16>)
      out[i] = BFloat16(static_cast<float>(z));
    else
      out[i] = static_cast<T>(z);
  }
}
}  // namespace

void fill_normal(std::uint64_t key, std::uint64_t stream, double std, TensorView out) {
  switch (out.dtype) {
    case DType::f32:
      return fill(key, stream, std, out.as<float>(), out.numel());
    case DType::bf16:
      return fill(key, stream, std, out.as<BFloat16>(), out.numel());
    case DType::f64:
      return fill(key, stream, std, out.as<double>(), out.numel());
    default:
      detail::throw_dtype(out.dtype, DType::f32);
  }
}

std::int64_t permuted(std::uint64_t key, std::uint64_t stream, std::int64_t index, std::int64_t size) {
  if (index < 0 || index >= size)
    throw InternalError("permutation index " + std::to_string(index) + " of " + std::to_string(size));
  int half_bits = 1;
  while ((std::int64_t{1} << (2 * half_bits)) < size) ++half_bits;
  const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
  auto x = static_cast<std::uint64_t>(index);
  do {  // a four-round Feistel network over a power of four, walked until it lands inside
    std::uint64_t left = x >> half_bits;
    std::uint64_t right = x & mask;
    for (std::uint64_t round = 0; round < 4; ++round) {
      const std::uint64_t mixed =
          word64(random_words(key, stream ^ 0x9e3779b97f4a7c15u, (right << 2) | round), 0);
      const std::uint64_t next = left ^ (mixed & mask);
      left = right;
      right = next;
    }
    x = (left << half_bits) | right;
  } while (x >= static_cast<std::uint64_t>(size));
  return static_cast<std::int64_t>(x);
}

std::uint64_t stream_of(const char* name) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (; *name != '\0'; ++name) hash = (hash ^ static_cast<unsigned char>(*name)) * 0x100000001b3u;
  return hash;
}

}  // namespace moecollab
