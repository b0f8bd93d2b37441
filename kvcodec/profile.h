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

// "kvtuner:NAME" of the files in kvcodec/profiles/, which are part of this program: the same
// program on two workers means the same bits.
const std::vector<Codec>& BuiltInProfileCodecs();

// As FindCodec, for a name that comes from this machine's operator, who may also give a file of his
// own: "kvtuner:PATH.json". What a peer says goes to FindCodec alone, which opens no files; it does
// not need to, for the codec of a file is named by its overrides.
// kNotFound: no such codec or file. kInvalidArgument: as FindCodec and ParseProfile.
absl::StatusOr<Codec> OpenCodec(std::string_view name);

}  // namespace kvferry::codec
