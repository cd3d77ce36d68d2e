// The text of manifest.json, and the part of it that ranks send each other while a checkpoint is written.
#pragma once

#include <string>

#include "moecollab/store/manifest.hpp"

namespace moecollab::store {

// Lists only: files, blocks, tensors.
std::string parts_to_text(const Manifest& parts);
void append_parts(const std::string& text, Manifest& to);  // throws CheckpointError

// {"digest": <of the bytes of the body>, "manifest": <body>}. Any changed bit is found when it is read.
std::string manifest_to_text(const Manifest& manifest);
Manifest manifest_from_text(const std::string& text);  // throws CheckpointError; no coverage check

}  // namespace moecollab::store
