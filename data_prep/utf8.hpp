#pragma once

#include <cstddef>
#include <string_view>

namespace moecollab::prepare {

// Offset of the first byte that is no part of well-formed UTF-8 (Unicode, table 3-7: no overlong forms, no
// surrogates, nothing above U+10FFFF), or npos.
std::size_t find_invalid_utf8(std::string_view text);

}  // namespace moecollab::prepare
