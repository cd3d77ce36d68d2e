// XXH3-128 of bytes: the digest of every tensor and file in a checkpoint. It finds damage, not forgery.
// Written as `xxhsum -H128` prints it.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <string>

#include "moecollab/core/tensor.hpp"

namespace moecollab::store {

struct Digest {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  auto operator<=>(const Digest&) const = default;
};
std::string to_string(const Digest& digest);   // 32 hexadecimal digits
Digest parse_digest(const std::string& text);  // throws DataError

Digest digest_of(const void* data, std::int64_t size_bytes);
Digest digest_of(const std::string& bytes);
Digest digest_of(ConstTensorView tensor);        // of the elements, without type and shape
Digest digest_of_file(const std::string& path);  // streamed; throws DataError

// For content that comes in pieces.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  void update(const void* data, std::int64_t size_bytes);
  Digest digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moecollab::store
