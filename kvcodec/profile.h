#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcodec/codec.h"

namespace kvferry::codec {

// Bits of keys and values layer by layer, found by a search on a model (KVTuner, arXiv 2502.04420):
// a name for the layer overrides of a kivi codec. The file is JSON (docs/format.md, "Profiles").
struct Profile {
  std::string name;                   // "c3"
  std::string codec;                  // whose groups and windows it has: "kivi-4-g64"
  std::vector<LayerOverride> layers;  // of every layer of the model
};

inline constexpr int kProfileVersion = 1;
inline constexpr std::string_view kProfileFormat = "kvferry-profile";
// What the ids of codecs made from profiles begin with.
inline constexpr std::string_view kProfilePrefix = "kvtuner:";

// `source` names the text in errors. kInvalidArgument: not of this format and version, a field is
// missing, of another type or out of range.
absl::StatusOr<Profile> ParseProfile(std::string_view json, std::string_view source);

// The codec of a profile: its hash is that of the same overrides written out. Named so too, unless
// it is built in.
absl::StatusOr<Codec> ProfileCodec(const Profile& profile);

// The codec of a profile in a file of the operator's. kNotFound: no such file. Else as
// ParseProfile.
absl::StatusOr<Codec> OpenProfileCodec(const std::string& path);

// "kvtuner:NAME" of the files in kvcodec/profiles/, which are part of this program: the same
// program on two workers means the same bits.
const std::vector<Codec>& BuiltInProfileCodecs();

}  // namespace kvferry::codec
