#include "rpc/fingerprint.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace kvferry::rpc {
namespace {

using google::protobuf::FieldDescriptor;

// FNV-1a: the hash must be the same on every host and in every build.
constexpr std::uint64_t kFnvOffset = 0xcbf29ce484222325;
constexpr std::uint64_t kFnvPrime = 0x100000001b3;

std::uint64_t Mix(std::uint64_t hash, std::string_view bytes) {
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * kFnvPrime;
  return hash;
}

std::string FieldText(const v1::Fingerprint& fingerprint, const FieldDescriptor& field) {
  const google::protobuf::Reflection& reflection = *fingerprint.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(reflection.GetUInt32(fingerprint, &field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrFormat("%016x", reflection.GetUInt64(fingerprint, &field));
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection.GetString(fingerprint, &field);
    default:
      return "?";
  }
}

}  // namespace

void SealFingerprint(v1::Fingerprint& fingerprint) {
  std::uint64_t hash = kFnvOffset;
  const google::protobuf::Descriptor& type = *v1::Fingerprint::descriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    if (type.field(i)->number() == v1::Fingerprint::kHashFieldNumber) continue;
    hash = Mix(hash, absl::StrCat(type.field(i)->name(), "=",
                                  FieldText(fingerprint, *type.field(i)), ";"));
  }
  fingerprint.set_hash(hash);
}

absl::Status CompareFingerprints(const v1::Fingerprint& here, const v1::Fingerprint& there) {
  std::vector<std::string> differences;
  const google::protobuf::Descriptor& type = *v1::Fingerprint::descriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (field.number() == v1::Fingerprint::kHashFieldNumber) continue;
    const std::string ours = FieldText(here, field);
    const std::string theirs = FieldText(there, field);
    if (ours != theirs)
      differences.push_back(absl::StrCat(field.name(), ": here ", ours, ", there ", theirs));
  }
  if (differences.empty() && here.hash() != there.hash()) {
    differences.push_back(
        absl::StrFormat("hash: here %016x, there %016x", here.hash(), there.hash()));
  }
  if (differences.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the workers do not fit together: ", absl::StrJoin(differences, "; ")));
}

}  // namespace kvferry::rpc
