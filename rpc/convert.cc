#include "rpc/convert.h"

#include "absl/strings/str_cat.h"

namespace kvferry::rpc {

absl::StatusOr<absl::Duration> ToDuration(const std::string& field,
                                          const google::protobuf::Duration& message) {
  constexpr std::int64_t kMaxSeconds = 315'576'000'000;  // ten thousand years, as protobuf has it
  if (message.seconds() < 0 || message.seconds() > kMaxSeconds || message.nanos() < 0 ||
      message.nanos() > 999'999'999) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", message.seconds(), " s ", message.nanos(),
                     " ns; a duration that is not negative is needed"));
  }
  return absl::Seconds(message.seconds()) + absl::Nanoseconds(message.nanos());
}

google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration message;
  message.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  message.set_nanos(static_cast<std::int32_t>(absl::ToInt64Nanoseconds(duration)));
  return message;
}

absl::StatusOr<TransferId> ToTransferId(const std::string& field, const std::string& bytes) {
  if (bytes.size() != TransferId{}.bytes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", bytes.size(), " bytes; 16 are needed"));
  }
  return TransferId::FromBytes(bytes);
}

}  // namespace kvferry::rpc
