#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "kvcodec/codec.h"

namespace kvferry::codec {

// As FindCodec, for a name that comes from this machine's operator, who may also give files of his
// own: "kvtuner:PATH.json" and "cq-4c8b:codebooks=PATH". What a peer says goes to FindCodec alone,
// which opens no files; it does not need to, for the codec of a file is named by what is in it: by
// its overrides, or by the hash of its codebooks.
// kNotFound: no such codec or file. kInvalidArgument: as FindCodec, or the file is of another
// format. kDataLoss: damaged codebooks.
absl::StatusOr<Codec> OpenCodec(std::string_view name);

// The file that the name of a coupled codec speaks of; empty: none.
std::string CodebooksPath(std::string_view name);

}  // namespace kvferry::codec
