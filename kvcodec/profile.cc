#include "kvcodec/profile.h"

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "kvcodec/built_in_profiles.h"

namespace kvferry::codec {
namespace {

constexpr std::size_t kMostLayers = 4096;

absl::Status Bad(std::string_view source, const absl::AlphaNum& what) {
  return absl::InvalidArgumentError(absl::StrCat("profile '", ToAbsl(source), "': ", what));
}

bool IsString(const nlohmann::json& json, const char* key) {
  return json.contains(key) && json[key].is_string() && !json[key].get<std::string>().empty();
}

absl::StatusOr<LayerOverride> ParseLayer(const nlohmann::json& json, std::string_view source,
                                         std::size_t layer) {
  const auto is_bits = [](const nlohmann::json& bits) {
    return bits.is_number_integer() && IsLayerBits(bits.get<std::int64_t>());
  };
  if (!json.is_array() || json.size() != 2 || !is_bits(json[0]) || !is_bits(json[1])) {
    return Bad(source, absl::StrCat("layers[", layer, "] is ", json.dump(),
                                    ", must be [K bits, V bits] of 1, 2, 3, 4, 8"));
  }
  return LayerOverride{json[0].get<int>(), json[1].get<int>()};
}

// A built-in profile is a part of this program, and tests read them all.
Codec BuiltIn(const BuiltInProfile& file) {
  const absl::StatusOr<Profile> profile = ParseProfile(file.json, file.name);
  absl::StatusOr<Codec> codec =
      profile.ok() ? ProfileCodec(*profile) : absl::StatusOr<Codec>(profile.status());
  if (!codec.ok()) {
    std::cerr << "built-in " << codec.status() << '\n';
    std::abort();
  }
  codec->name = absl::StrCat(ToAbsl(kProfilePrefix), profile->name);
  return *std::move(codec);
}

}  // namespace

absl::StatusOr<Profile> ParseProfile(std::string_view text, std::string_view source) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Bad(source, "is no JSON object");
  if (!IsString(json, "format") || json["format"] != kProfileFormat) {
    return Bad(source, absl::StrCat("has no \"format\": \"", ToAbsl(kProfileFormat), "\""));
  }
  if (!json.contains("version") || json["version"] != kProfileVersion) {
    return Bad(source, absl::StrCat("version is ",
                                    json.contains("version") ? json["version"].dump() : "missing",
                                    ", this program reads ", kProfileVersion));
  }
  Profile profile;
  for (const auto& [key, field] :
       {std::pair("name", &profile.name), std::pair("codec", &profile.codec)}) {
    if (!IsString(json, key)) return Bad(source, absl::StrCat("has no ", key));
    *field = json[key].get<std::string>();
  }
  if (!json.contains("layers") || !json["layers"].is_array() || json["layers"].empty() ||
      json["layers"].size() > kMostLayers) {
    return Bad(source, absl::StrCat("has no list of 1 to ", kMostLayers, " layers"));
  }
  for (const nlohmann::json& layer : json["layers"]) {
    KVF_ASSIGN_OR_RETURN(profile.layers.emplace_back(),
                         ParseLayer(layer, source, profile.layers.size()));
  }
  return profile;
}

absl::StatusOr<Codec> ProfileCodec(const Profile& profile) {
  std::string name = profile.codec;
  for (std::size_t layer = 0; layer < profile.layers.size(); ++layer) {
    absl::StrAppend(&name, name.size() == profile.codec.size() ? ":" : ",", "layer.", layer, "=",
                    profile.layers[layer].k_bits, "/", profile.layers[layer].v_bits);
  }
  absl::StatusOr<Codec> codec = FindCodec(name);
  if (!codec.ok()) return Bad(profile.name, codec.status().message());
  codec->model_layers = static_cast<int>(profile.layers.size());
  return codec;
}

const std::vector<Codec>& BuiltInProfileCodecs() {
  static const std::vector<Codec>* codecs = [] {
    auto* all = new std::vector<Codec>();
    for (const BuiltInProfile& file : BuiltInProfiles()) all->push_back(BuiltIn(file));
    return all;
  }();
  return *codecs;
}

absl::StatusOr<Codec> OpenProfileCodec(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file.good() && !file.eof()) {
    return absl::NotFoundError(absl::StrCat("cannot read the profile '", path, "'"));
  }
  KVF_ASSIGN_OR_RETURN(const Profile profile, ParseProfile(text, path));
  return ProfileCodec(profile);
}

}  // namespace kvferry::codec
