#pragma once

#include <span>
#include <string_view>

namespace kvferry::codec {

// A file of kvcodec/profiles/, as it is.
struct BuiltInProfile {
  std::string_view name;  // of the file, without .json
  std::string_view json;
};

// In the order of their names. CMake writes the definition.
std::span<const BuiltInProfile> BuiltInProfiles();

}  // namespace kvferry::codec
