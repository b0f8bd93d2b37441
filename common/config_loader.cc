#include "common/config_loader.h"

#include <fcntl.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/status_macros.h"

namespace kvferry {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Keeps the first error of a parse.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    if (text.empty())
      text = absl::StrCat("line ", line + 1, ", column ", column + 1, ": ", message);
  }
  std::string text;
};

std::string FieldNames(const Descriptor& type) {
  std::vector<std::string> names;
  names.reserve(type.field_count());
  for (int i = 0; i < type.field_count(); ++i) names.push_back(type.field(i)->name());
  return absl::StrJoin(names, ", ");
}

bool IsDuration(const FieldDescriptor& field) {
  return field.type() == FieldDescriptor::TYPE_MESSAGE &&
         field.message_type()->full_name() == "google.protobuf.Duration";
}

// One "path=value" on its way into a message.
struct Setting {
  std::string path;
  std::string value;
  bool append = false;

  absl::Status Bad(const std::string& allowed) const {
    return absl::InvalidArgumentError(absl::StrCat(path, " = '", value, "': want ", allowed));
  }
};

absl::Status SetDuration(const Setting& setting, Message& duration) {
  absl::Duration parsed;
  if (!absl::ParseDuration(setting.value, &parsed) || parsed == absl::InfiniteDuration() ||
      parsed == -absl::InfiniteDuration()) {
    return setting.Bad("a duration such as 250ms, 1.5s or 2m");
  }
  const Descriptor& type = *duration.GetDescriptor();
  const Reflection& reflection = *duration.GetReflection();
  const std::int64_t seconds = absl::IDivDuration(parsed, absl::Seconds(1), &parsed);
  reflection.SetInt64(&duration, type.FindFieldByName("seconds"), seconds);
  reflection.SetInt32(&duration, type.FindFieldByName("nanos"),
                      static_cast<std::int32_t>(absl::ToInt64Nanoseconds(parsed)));
  return absl::OkStatus();
}

template <typename T, typename Put>
absl::Status SetNumber(const Setting& setting, const char* allowed,
                       bool (*parse)(absl::string_view, T*), Put put) {
  T number;
  if (!parse(setting.value, &number)) return setting.Bad(allowed);
  put(number);
  return absl::OkStatus();
}

absl::Status SetEnum(const Setting& setting, const FieldDescriptor& field, Message& message) {
  const google::protobuf::EnumDescriptor& type = *field.enum_type();
  const google::protobuf::EnumValueDescriptor* value = type.FindValueByName(setting.value);
  if (value != nullptr) {
    message.GetReflection()->SetEnum(&message, &field, value);
    return absl::OkStatus();
  }
  std::vector<std::string> names;
  names.reserve(type.value_count());
  for (int i = 0; i < type.value_count(); ++i) names.push_back(type.value(i)->name());
  return setting.Bad(absl::StrCat("one of ", absl::StrJoin(names, ", ")));
}

absl::Status Unsettable(const Setting& setting, const FieldDescriptor& field) {
  return setting.Bad(absl::StrCat("nothing: ", field.is_repeated() ? "lists" : "fields",
                                  " of type ", field.cpp_type_name(),
                                  " can be set in the config file only"));
}

absl::Status AppendToList(const Setting& setting, const FieldDescriptor& field, Message& message) {
  if (field.cpp_type() != FieldDescriptor::CPPTYPE_STRING) return Unsettable(setting, field);
  message.GetReflection()->AddString(&message, &field, setting.value);
  return absl::OkStatus();
}

absl::Status SetScalar(const Setting& setting, const FieldDescriptor& field, Message& message) {
  const Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      reflection.SetString(&message, &field, setting.value);
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_ENUM:
      return SetEnum(setting, field, message);
    case FieldDescriptor::CPPTYPE_BOOL:
      return SetNumber<bool>(setting, "true or false", absl::SimpleAtob,
                             [&](bool v) { reflection.SetBool(&message, &field, v); });
    case FieldDescriptor::CPPTYPE_UINT32:
      return SetNumber<std::uint32_t>(
          setting, "an integer from 0 to 4294967295", absl::SimpleAtoi<std::uint32_t>,
          [&](std::uint32_t v) { reflection.SetUInt32(&message, &field, v); });
    case FieldDescriptor::CPPTYPE_UINT64:
      return SetNumber<std::uint64_t>(
          setting, "an integer from 0 to 18446744073709551615", absl::SimpleAtoi<std::uint64_t>,
          [&](std::uint64_t v) { reflection.SetUInt64(&message, &field, v); });
    default:
      return Unsettable(setting, field);
  }
}

absl::Status SetMapEntry(const Setting& setting, const std::string& key,
                         const FieldDescriptor& field, Message& message) {
  const Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
    Message* entry = reflection.MutableRepeatedMessage(&message, &field, i);
    const Descriptor& type = *entry->GetDescriptor();
    if (entry->GetReflection()->GetString(*entry, type.map_key()) == key) {
      entry->GetReflection()->SetString(entry, type.map_value(), setting.value);
      return absl::OkStatus();
    }
  }
  Message* entry = reflection.AddMessage(&message, &field);
  entry->GetReflection()->SetString(entry, entry->GetDescriptor()->map_key(), key);
  entry->GetReflection()->SetString(entry, entry->GetDescriptor()->map_value(), setting.value);
  return absl::OkStatus();
}

absl::Status Apply(const Setting& setting, std::vector<std::string> names, Message& message) {
  const Descriptor& type = *message.GetDescriptor();
  const FieldDescriptor* field = type.FindFieldByName(names.front());
  if (field == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "no setting '", setting.path, "': '", names.front(), "' is not one of ", FieldNames(type)));
  }
  names.erase(names.begin());
  if (field->is_map()) {
    if (names.empty()) return setting.Bad(absl::StrCat("a key after '", field->name(), ".'"));
    return SetMapEntry(setting, absl::StrJoin(names, "."), *field, message);
  }
  if (names.empty() && setting.append != field->is_repeated()) {
    return setting.Bad(field->is_repeated() ? "'+=' in place of '=', since the field is a list"
                                            : "'=' in place of '+='");
  }
  if (names.empty() && !IsDuration(*field)) {
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      return setting.Bad(absl::StrCat("one of its fields: ", FieldNames(*field->message_type())));
    }
    return field->is_repeated() ? AppendToList(setting, *field, message)
                                : SetScalar(setting, *field, message);
  }
  if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || field->is_repeated()) {
    return setting.Bad(absl::StrCat("no field below '", field->name(), "'"));
  }
  Message& child = *message.GetReflection()->MutableMessage(&message, field);
  return names.empty() ? SetDuration(setting, child) : Apply(setting, std::move(names), child);
}

absl::StatusOr<Setting> ParseSetting(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not path=value"));
  }
  Setting setting{.path = text.substr(0, equals),
                  .value = text.substr(equals + 1),
                  .append = text[equals - 1] == '+'};
  if (setting.append) setting.path.pop_back();
  return setting;
}

}  // namespace

absl::Status LoadConfigFile(const std::string& path, Message* config) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the config file '", path, "'"));
  google::protobuf::io::FileInputStream stream(fd);
  stream.SetCloseOnDelete(true);
  FirstError error;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  const bool parsed = parser.Parse(&stream, config);
  // A failed read looks like the end of the file, and an empty file is a valid configuration.
  if (stream.GetErrno() != 0) {
    return absl::ErrnoToStatus(stream.GetErrno(),
                               absl::StrCat("cannot read the config file '", path, "'"));
  }
  if (!parsed) return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.text));
  return absl::OkStatus();
}

absl::Status ApplySettings(std::span<const std::string> settings, Message* config) {
  for (const std::string& text : settings) {
    KVF_ASSIGN_OR_RETURN(const Setting setting, ParseSetting(text));
    KVF_RETURN_IF_ERROR(Apply(setting, absl::StrSplit(setting.path, '.'), *config));
  }
  return absl::OkStatus();
}

std::string PrintConfig(const Message& config) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(config, &text);
  return text;
}

}  // namespace kvferry
