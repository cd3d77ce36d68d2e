#include "moecollab/core/uuid.hpp"

#include <cstdio>

#include "moecollab/core/error.hpp"
#include "moecollab/core/random.hpp"

namespace moecollab {

// RFC 9562 version 8 (custom) with the standard variant bits.
Uuid Uuid::from_bits(std::uint64_t high, std::uint64_t low) {
  return {(high & ~std::uint64_t{0xf000}) | 0x8000u,
          (low & ~(std::uint64_t{3} << 62)) | (std::uint64_t{2} << 62)};
}

Uuid Uuid::from_seed(std::uint64_t seed, std::uint64_t slot) {
  const auto w = random_words(seed, stream_of("expert uuid"), slot);
  return from_bits((static_cast<std::uint64_t>(w[0]) << 32) | w[1],
                   (static_cast<std::uint64_t>(w[2]) << 32) | w[3]);
}

std::string to_string(const Uuid& uuid) {
  char text[37];
  std::snprintf(text, sizeof text, "%08x-%04x-%04x-%04x-%012llx", static_cast<unsigned>(uuid.high >> 32),
                static_cast<unsigned>((uuid.high >> 16) & 0xffffu),
                static_cast<unsigned>(uuid.high & 0xffffu), static_cast<unsigned>(uuid.low >> 48),
                static_cast<unsigned long long>(uuid.low & 0xffffffffffffu));
  return text;
}

Uuid Uuid::parse(const std::string& text) {
  std::uint64_t words[2] = {0, 0};
  int digits = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (i == 8 || i == 13 || i == 18 || i == 23) {
      if (c != '-') break;
      continue;
    }
    const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (value < 0 || digits >= 32) break;
    words[digits / 16] = words[digits / 16] << 4 | static_cast<std::uint64_t>(value);
    ++digits;
  }
  if (text.size() != 36 || digits != 32)
    throw DataError("'" + text +
                    "' is not an expert id: expected 36 characters like "
                    "01234567-89ab-8def-8123-456789abcdef, lower case");
  return {words[0], words[1]};
}

}  // namespace moecollab
