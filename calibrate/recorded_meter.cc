#include "calibrate/recorded_meter.h"

#include <algorithm>
#include <set>

#include "common/status_macros.h"

namespace kvferry::calibrate {
namespace {

// Codecs that are measured between two writes: what a run that is stopped loses.
constexpr std::size_t kPart = 16;

}  // namespace

absl::StatusOr<std::unique_ptr<RecordedMeter>> RecordedMeter::Open(const std::string& path,
                                                                   const nlohmann::json& run,
                                                                   KlMeter& meter,
                                                                   Progress progress) {
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<bench::JsonLines> file, bench::JsonLines::Open(path, run));
  std::unique_ptr<RecordedMeter> recorded(
      new RecordedMeter(std::move(file), meter, std::move(progress)));
  const std::vector<nlohmann::json>& lines = recorded->file_->lines();
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const nlohmann::json& line = lines[i];
    if (!line.contains("hash") || !line["hash"].is_number_unsigned() || !line.contains("kl") ||
        !line["kl"].is_number()) {
      return recorded->file_->Damaged(i, absl::DataLossError("no hash and kl"));
    }
    recorded->known_[line["hash"].get<std::uint64_t>()] = line["kl"].get<double>();
  }
  return recorded;
}

absl::StatusOr<std::vector<double>> RecordedMeter::Measure(std::span<const codec::Codec> codecs) {
  std::vector<codec::Codec> missing;
  std::set<std::uint64_t> asked;
  for (const codec::Codec& codec : codecs) {
    if (!known_.contains(codec.Hash()) && asked.insert(codec.Hash()).second) {
      missing.push_back(codec);
    }
  }
  for (std::size_t at = 0; at < missing.size(); at += kPart) {
    progress_("codecs", static_cast<int>(at), static_cast<int>(missing.size()));
    const std::span<const codec::Codec> part =
        std::span(missing).subspan(at, std::min(kPart, missing.size() - at));
    KVF_ASSIGN_OR_RETURN(const std::vector<double> losses, meter_.Measure(part));
    for (std::size_t i = 0; i < part.size(); ++i) {
      KVF_RETURN_IF_ERROR(
          file_->Append({{"hash", part[i].Hash()}, {"kl", losses[i]}, {"codec", part[i].name}}));
      known_[part[i].Hash()] = losses[i];
    }
  }
  std::vector<double> losses;
  for (const codec::Codec& codec : codecs) losses.push_back(known_.at(codec.Hash()));
  return losses;
}

}  // namespace kvferry::calibrate
