#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "bench/quality/passkey.h"
#include "bench/quality/quality.h"

// What a run of the quality bench has found, for people and for files.
namespace kvferry::bench {

std::string FormatResult(const QualityResult& result);
std::string FormatPasskeys(const PasskeyResult& result);

nlohmann::json ToJson(const QualityResult& result);
nlohmann::json ToJson(const PasskeyResult& result);

}  // namespace kvferry::bench
