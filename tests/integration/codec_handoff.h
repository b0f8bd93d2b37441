#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/quality/device.h"
#include "bench/quality/prompt.h"
#include "kvcodec/codec.h"
#include "tests/integration/cluster.h"
#include "tests/integration/served_model.h"
#include "tests/model/temp_folder.h"

namespace kvferry::testing {

// Where the workers compute, what they serve, and how far their logits may be from those of CPUs.
struct HandoffDevices {
  std::string prefill = "cpu", decode = "cpu";  // model.device
  ServedModel model = SmallRandomModel();
  float exact_error = 0.01f;  // with the fp16 codec, from exact attention in this process
  float codec_error = 0.01f;  // from the same codec on CPUs in this process
};

// Router and prefill worker, and one decode worker after the other, each of another codec; beside
// them the CPU path in this process: what they are held against. Thread: one.
class CodecHandoff {
 public:
  static absl::StatusOr<std::unique_ptr<CodecHandoff>> Start(const HandoffDevices& devices);

  // As a decode worker's operator writes it: a coupled codec with its codebooks, "kvtuner" as a
  // profile of all pairs of bits, all else as it is.
  std::string SettingOf(const std::string& name) const;

  static constexpr char kFirstPrefill[] = "prefill-0";  // it has read all codebooks

  // A decode worker of the codec, by its setting. kAborted: it did not start; `log` says why.
  absl::Status StartDecode(const std::string& setting);
  absl::Status StopDecode();
  std::string DecodeLog() const { return cluster_->Log(decode_); }
  absl::StatusOr<std::string> CodecOfPool();

  // A second prefill worker, which has read no codebooks.
  absl::Status StartPlainPrefill();

  // The same prompt each time: kTokens tokens, past a flush of every codec's window.
  static constexpr int kTokens = 72;
  Answer Serve();
  absl::Status AwaitAllFree();

  // The answer token by token by the same codec, or by exact attention, on CPUs in one process.
  struct CpuPath {
    std::size_t wire_bytes = 0;  // of the hand-off, counted in the buffers
    // By token: how far the best logit leads that token's, 0 where CPUs would have chosen it.
    std::vector<float> leads;
  };
  absl::StatusOr<CpuPath> Follow(const codec::Codec& codec, std::span<const std::int32_t> answer);
  absl::StatusOr<CpuPath> FollowExactly(std::span<const std::int32_t> answer);

  const HandoffDevices& devices() const { return devices_; }
  codec::CacheGeometry geometry() const { return cpu_->geometry(); }
  int prompt_tokens() const { return static_cast<int>(prompt_.size()); }

 private:
  CodecHandoff() = default;
  absl::Status MakeCodebooks(std::span<const std::int32_t> prompt);
  absl::Status WriteProfile() const;
  absl::Status StartCluster();
  absl::StatusOr<const bench::PrefilledPrompt*> Prefilled(codec::Raw16 type);
  std::string ProfilePath() const { return (folder_ / "all_pairs.json").string(); }
  std::vector<std::string> PrefillSettings() const;
  std::vector<std::string> MemorySettings() const;
  absl::Status AwaitWorkers(int count);

  HandoffDevices devices_;
  model::TempFolder folder_;                      // of codebooks and profile
  std::map<std::string, std::string> codebooks_;  // path by codec
  std::unique_ptr<bench::Device> cpu_;
  std::vector<std::int32_t> prompt_;
  std::map<codec::Raw16, bench::PrefilledPrompt> prefilled_;
  std::unique_ptr<Cluster> cluster_;
  std::string decode_;  // the decode worker's name
  int decodes_ = 0;     // that there have been
  int prefills_ = 1;
};

}  // namespace kvferry::testing
