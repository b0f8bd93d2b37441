#include "router/wire_text.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/unicode.h"

namespace kvferry::router {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr int kMaxDepth = 32;

absl::Status Broken(const std::string& path) {
  return absl::InvalidArgumentError(
      absl::StrCat(path.empty() ? std::string("the request") : path, ": the bytes are no message"));
}

absl::Status CheckStrings(const Descriptor& type, std::string_view bytes, const std::string& path,
                          int depth) {
  CodedInputStream input(reinterpret_cast<const std::uint8_t*>(bytes.data()),
                         static_cast<int>(bytes.size()));
  std::map<int, int> counts;  // of repeated fields
  while (const std::uint32_t tag = input.ReadTag()) {
    if (WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&input, tag)) return Broken(path);
      continue;
    }
    std::uint32_t length = 0;
    std::string value;
    if (!input.ReadVarint32(&length) || !input.ReadString(&value, static_cast<int>(length)))
      return Broken(path);
    const int number = WireFormatLite::GetTagFieldNumber(tag);
    const FieldDescriptor* field = type.FindFieldByNumber(number);
    if (field == nullptr) continue;
    std::string name = absl::StrCat(path, field->name());
    if (field->is_repeated()) absl::StrAppend(&name, "[", counts[number]++, "]");
    if (field->type() == FieldDescriptor::TYPE_STRING) {
      KVF_RETURN_IF_ERROR(model::CheckUtf8(value, name));
    } else if (field->type() == FieldDescriptor::TYPE_MESSAGE && depth < kMaxDepth) {
      KVF_RETURN_IF_ERROR(CheckStrings(*field->message_type(), value, name + ".", depth + 1));
    }
  }
  return input.ConsumedEntireMessage() ? absl::OkStatus() : Broken(path);
}

}  // namespace

absl::Status ExplainUnparsable(const Descriptor& type, std::string_view bytes) {
  KVF_RETURN_IF_ERROR(CheckStrings(type, bytes, "", 0));
  return absl::InvalidArgumentError(absl::StrCat("the bytes are no ", type.full_name()));
}

}  // namespace kvferry::router
