#include "bench/quality/record.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvferry::bench {
namespace {

// Names every field once, for both directions.
template <typename R, typename F>
void EachField(R& record, F field) {
  field("passage", record.passage);
  field("codec", record.codec);
  field("codec_hash", record.codec_hash);
  field("nll", record.nll);
  field("kl", record.kl);
  field("agree", record.agree);
  field("sure", record.sure);
  field("sure_agree", record.sure_agree);
  field("top5", record.top5);
  field("greedy_tokens", record.greedy_tokens);
  field("greedy_prefix", record.greedy_prefix);
  field("trajectory_kl", record.trajectory_kl);
  field("attention_error", record.attention_error);
  field("wire_bytes", record.wire_bytes);
  field("resident_bytes", record.resident_bytes);
  field("resident_tokens", record.resident_tokens);
  field("seconds", record.seconds);
}

}  // namespace

bool Record::Add(const Comparison& one) {
  if (!std::isfinite(one.kl) || !std::isfinite(one.nll)) return false;
  nll.push_back(one.nll);
  kl.push_back(one.kl);
  agree += one.agrees;
  sure += one.sure;
  sure_agree += one.sure && one.agrees;
  top5 += one.top5;
  return true;
}

std::string HashText(const codec::Codec& codec) { return absl::StrFormat("%016x", codec.Hash()); }

nlohmann::json ToJson(const Record& record) {
  nlohmann::json json;
  EachField(record, [&json](const char* name, const auto& value) { json[name] = value; });
  return json;
}

absl::StatusOr<Record> RecordFromJson(const nlohmann::json& json) {
  Record record;
  try {
    EachField(record, [&json](const char* name, auto& value) { json.at(name).get_to(value); });
  } catch (const nlohmann::json::exception& error) {
    return absl::DataLossError(absl::StrCat("not a record of the quality bench: ", error.what()));
  }
  return record;
}

}  // namespace kvferry::bench
