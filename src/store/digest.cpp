#include "moecollab/store/digest.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "moecollab/core/error.hpp"

namespace moecollab::store {

std::string to_string(const Digest& digest) { return fmt::format("{:016x}{:016x}", digest.high, digest.low); }

Digest parse_digest(const std::string& text) {
  if (text.size() != 32 || text.find_first_not_of("0123456789abcdef") != std::string::npos)
    throw DataError(fmt::format("'{}' is not a digest: expected 32 lower-case hexadecimal digits", text));
  return {std::stoull(text.substr(0, 16), nullptr, 16), std::stoull(text.substr(16), nullptr, 16)};
}

Digest digest_of(const void* data, std::int64_t size_bytes) {
  const XXH128_hash_t hash = XXH3_128bits(data, static_cast<std::size_t>(size_bytes));
  return {hash.high64, hash.low64};
}

Digest digest_of(const std::string& bytes) {
  return digest_of(bytes.data(), static_cast<std::int64_t>(bytes.size()));
}

Digest digest_of(ConstTensorView tensor) { return digest_of(tensor.data, tensor.size_bytes()); }

Digest digest_of_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) throw DataError(fmt::format("cannot read '{}': {}", path, std::strerror(errno)));
  Hasher hasher;
  std::vector<char> buffer(std::size_t{1} << 20);
  for (;;) {
    const std::size_t got = std::fread(buffer.data(), 1, buffer.size(), file.get());
    hasher.update(buffer.data(), static_cast<std::int64_t>(got));
    if (got < buffer.size()) break;
  }
  if (std::ferror(file.get()) != 0)
    throw DataError(fmt::format("cannot read '{}': {}", path, std::strerror(errno)));
  return hasher.digest();
}

struct Hasher::State {
  XXH3_state_t* state = XXH3_createState();
  ~State() { XXH3_freeState(state); }
};

Hasher::Hasher() : state_(std::make_unique<State>()) {
  if (state_->state == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state_->state);
}
Hasher::~Hasher() = default;

void Hasher::update(const void* data, std::int64_t size_bytes) {
  XXH3_128bits_update(state_->state, data, static_cast<std::size_t>(size_bytes));
}

Digest Hasher::digest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->state);
  return {hash.high64, hash.low64};
}

}  // namespace moecollab::store
