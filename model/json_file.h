#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvferry::model {

// The JSON object in `text`; `what` names it in errors. kInvalidArgument: not JSON (with the byte),
// nested deeper than 64, not an object.
absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& what, std::string_view text);
// The JSON object in a file. kNotFound: no such file.
absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path);

}  // namespace kvferry::model
