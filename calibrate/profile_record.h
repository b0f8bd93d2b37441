#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "calibrate/layer_errors.h"
#include "calibrate/profile_search.h"

namespace kvferry::calibrate {

// A profile file (docs/format.md): what codec::ParseProfile reads, and beside it where the numbers
// are from.
//   setup: of the measurement. errors: [layer][pair of AllPairs()].
nlohmann::json ProfileJson(const std::string& name, const SearchInput& input,
                           const SearchResult& result,
                           const std::vector<std::vector<LayerErrors>>& errors,
                           nlohmann::json setup);

// The same for people: what was found, beside the uniform codecs.
std::string ProfileText(const std::string& name, const SearchResult& result);

}  // namespace kvferry::calibrate
