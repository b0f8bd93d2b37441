#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace google::protobuf {
class Descriptor;
}

namespace kvferry::router {

// Why `bytes` are no message of `type`. Protobuf refuses one that has a string that is not UTF-8 as
// a whole, without a word to the caller; this finds the words. kInvalidArgument names the field
// ("chat.messages[2].content") and the offset in it, or says that the bytes are no message.
absl::Status ExplainUnparsable(const google::protobuf::Descriptor& type, std::string_view bytes);

}  // namespace kvferry::router
