#include "kernels/decode_attention.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numbers>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/attention_args.h"
#include "kernels/attention_variants.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/event.h"
#include "kernels/cuda/status.h"
#include "kvcodec/describe.h"

namespace kvferry::kernels {
namespace {

absl::Status Check(const AttentionConfig& config) {
  const auto invalid = [](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat("decode_attention: ", what...));
  };
  if (config.kv_heads < 1 || config.q_heads % config.kv_heads != 0 ||
      config.q_heads / config.kv_heads > kMaxQueryGroup || config.q_heads < config.kv_heads) {
    return invalid(config.q_heads, " query heads on ", config.kv_heads,
                   " KV heads; a KV head has 1..", kMaxQueryGroup);
  }
  if (config.query_tokens < 1 || config.query_tokens > kMaxQueryTokens) {
    return invalid(config.query_tokens, " query tokens; 1..", kMaxQueryTokens);
  }
  if (config.max_sequences < 1 || config.window_capacity < config.query_tokens ||
      config.sink_capacity < 0 || !(config.scale > 0)) {
    return invalid("max_sequences ", config.max_sequences, ", window_capacity ",
                   config.window_capacity, ", sink_capacity ", config.sink_capacity, ", scale ",
                   config.scale);
  }
  if (config.spec.kind == codec::BlockKind::kRaw16 && config.spec.raw_type != config.type) {
    return invalid("blocks and queries have different 16-bit types");
  }
  KVF_RETURN_IF_ERROR(config.spec.Validate());
  return codec::CheckCodebooks(config.spec, config.kv_heads);
}

// What a tile of 16-bit tokens takes in a large thread block, in blocks: its bytes come without a
// ring, and the others wait for its warp.
constexpr float kLargeTileCost = 1.6f;

// What a tile of 16-bit tokens takes in a small one, in blocks: its bytes come without a ring.
float TileCost(const codec::BlockSpec& spec) {
  constexpr float kExposed = 1.5f;
  return kExposed * static_cast<float>(codec::Raw16Bytes(kTileTokens, 1, spec.head_dim)) /
         static_cast<float>(codec::BlockBytes(spec));
}

// A kernel on this device, and how work is cut for it.
struct Placed {
  AttentionKernel kernel;
  AttentionShape shape;
};

cudaLaunchAttribute ClusterDimension() {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kClusterBlocks, 1, 1};
  return attribute;
}

// A cluster merges faster than pieces of the whole device, while each of its thread blocks has at
// most as many blocks.
constexpr int kClusterWalk = 8;
// So few heads, each in so many pieces, that merging partial results would take the time.
constexpr int kManyPieces = 12;
// Blocks that each warp of a large thread block walks over from which on it reads faster than small
// ones: its start and end, which nothing covers, are then a small part. Later where there are no
// more heads than large thread blocks: small ones have tails there.
constexpr int kLongWalk = 24, kLongWalkOfFewHeads = 48;

class CudaDecodeAttention : public DecodeAttention {
 public:
  CudaDecodeAttention(const AttentionConfig& config, const Placed& small, const Placed& large,
                      const Placed& clustered)
      : config_(config), small_(small), large_(large), clustered_(clustered) {}

  absl::Status Allocate() {
    if (config_.spec.codebooks != nullptr) {
      KVF_ASSIGN_OR_RETURN(coupled_, DeviceCodebooks(*config_.spec.codebooks));
    }
    const int pieces = std::max({MaxPieces(config_.max_sequences, small_.shape),
                                 MaxPieces(config_.max_sequences, large_.shape),
                                 MaxPieces(config_.max_sequences, clustered_.shape)});
    const std::size_t rows = static_cast<std::size_t>(pieces) * kColumns;
    KVF_ASSIGN_OR_RETURN(pieces_, DeviceBuffer::Allocate(pieces * sizeof(AttentionPiece)));
    KVF_ASSIGN_OR_RETURN(staging_, PinnedBuffer::Allocate(pieces * sizeof(AttentionPiece)));
    KVF_ASSIGN_OR_RETURN(partial_sums_,
                         DeviceBuffer::Allocate(rows * config_.spec.head_dim * sizeof(float)));
    KVF_ASSIGN_OR_RETURN(partial_tops_,
                         DeviceBuffer::Allocate(rows * kPartialTops * sizeof(float2)));
    KVF_ASSIGN_OR_RETURN(Event copied, Event::Create());
    copied_.emplace(std::move(copied));
    for (DeviceBuffer* partial : {&partial_sums_, &partial_tops_}) {
      KVF_RETURN_IF_ERROR(CudaStatus(cudaMemset(partial->data(), kAbsentByte, partial->bytes()),
                                     "partial results of attention"));
    }
    // Our streams do not wait for the default one.
    return CudaStatus(cudaStreamSynchronize(nullptr), "partial results of attention");
  }

  absl::Status Plan(std::span<const AttentionLength> lengths, Stream& stream) override {
    if (lengths.size() > static_cast<std::size_t>(config_.max_sequences)) {
      return absl::InvalidArgumentError(absl::StrCat("decode_attention: ", lengths.size(),
                                                     " sequences of ", config_.max_sequences));
    }
    for (const AttentionLength& length : lengths) {
      if (length.raw_tokens < config_.query_tokens || length.blocks < 0) {
        return absl::InvalidArgumentError(absl::StrCat("decode_attention: a sequence of ",
                                                       length.blocks, " blocks and ",
                                                       length.raw_tokens, " 16-bit tokens"));
      }
    }
    const int sequences = static_cast<int>(lengths.size());
    chosen_ = &Choose(lengths);
    AttentionShape shape = chosen_->shape;
    const AttentionPlan plan = PlanAttention(lengths, shape);
    shape.has_tails = has_tails_ = plan.has_tails;
    grid_ = MaxPieces(sequences, shape);
    KVF_RETURN_IF_ERROR(copied_->Synchronize());  // the plan before this one has left staging_
    const std::size_t bytes = plan.pieces.size() * sizeof(AttentionPiece);
    const std::size_t grid_bytes = grid_ * sizeof(AttentionPiece);
    if (bytes > grid_bytes) {
      return absl::InternalError(absl::StrCat("decode_attention: a plan of ", plan.pieces.size(),
                                              " pieces, at most ", grid_, " expected"));
    }
    std::memset(staging_.data(), 0, grid_bytes);
    std::memcpy(staging_.data(), plan.pieces.data(), bytes);
    KVF_RETURN_IF_ERROR(CopyAsync(pieces_.data(), staging_.data(), grid_bytes, stream));
    return copied_->Record(stream);
  }

  int launch_kind() const override {
    const int way = chosen_ == &clustered_ ? 2 : chosen_ == &large_ ? 1 : 0;
    return 2 * way + (has_tails_ ? 1 : 0);
  }

  absl::Status Launch(const AttentionLayer& layer, Stream& stream) override {
    if (chosen_ == nullptr) {
      return absl::FailedPreconditionError("decode_attention: Launch before Plan");
    }
    if (layer.sequences == nullptr || layer.pages == nullptr || layer.q == nullptr ||
        layer.out == nullptr) {
      return absl::InvalidArgumentError("decode_attention: a pointer is null");
    }
    if (config_.spec.codebooks != nullptr &&
        (layer.layer < 0 || layer.layer >= config_.spec.codebooks->shape().layers)) {
      return absl::InvalidArgumentError(
          absl::StrCat("decode_attention: no codebooks for layer ", layer.layer));
    }
    AttentionArgs args{};
    args.pieces = pieces_.as<AttentionPiece>();
    args.sequences = layer.sequences;
    args.pages = layer.pages;
    args.q = layer.q;
    args.out = layer.out;
    args.log_sum = layer.log_sum;
    args.partial_sums = partial_sums_.as<float>();
    args.partial_tops = partial_tops_.as<float2>();
    args.sink_offset = layer.sink_offset;
    args.window_offset = layer.window_offset;
    args.kv_heads = config_.kv_heads;
    args.group = config_.q_heads / config_.kv_heads;
    args.query_tokens = config_.query_tokens;
    args.sink_capacity = config_.sink_capacity;
    args.window_capacity = config_.window_capacity;
    args.scale_log2 = config_.scale * std::numbers::log2e_v<float>;
    args.bf16 = config_.type == codec::Raw16::kBf16;
    args.pages_settled = layer.pages_settled;
    args.clustered = chosen_->shape.clustered;
    args.coupled = coupled_;
    args.coupled.centroids += coupled_.layer_values * layer.layer;
    std::array<cudaLaunchAttribute, 2> attributes{};
    cudaLaunchConfig_t launch{};
    launch.gridDim = dim3(grid_);
    launch.blockDim = dim3(chosen_->kernel.warps * 32);
    launch.dynamicSmemBytes = chosen_->kernel.shared_bytes;
    launch.stream = stream.get();
    launch.attrs = attributes.data();
    if (args.clustered) attributes[launch.numAttrs++] = ClusterDimension();
    if (args.pages_settled) {
      cudaLaunchAttribute& early = attributes[launch.numAttrs++];
      early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      early.val.programmaticStreamSerializationAllowed = 1;
    }
    void* parameters[] = {&args};
    return CudaStatus(cudaLaunchKernelExC(&launch, chosen_->kernel.function, parameters),
                      "decode_attention");
  }

 private:
  const Placed& Choose(std::span<const AttentionLength> lengths) const {
    const std::int64_t heads = Heads(static_cast<int>(lengths.size()), small_.shape);
    if (heads * kManyPieces <= small_.shape.slots) {
      return SuitsClusters(lengths, heads) ? clustered_ : large_;
    }
    std::int64_t blocks = 0;
    for (const AttentionLength& length : lengths) blocks += length.blocks;
    blocks *= heads / std::ssize(lengths);
    const std::int64_t pieces = std::max<std::int64_t>(heads, large_.shape.slots);
    const int long_walk = heads > large_.shape.slots ? kLongWalk : kLongWalkOfFewHeads;
    return blocks >= pieces * large_.shape.warps * long_walk ? large_ : small_;
  }

  // Whether the device holds a cluster for each head, and that is enough for the longest.
  bool SuitsClusters(std::span<const AttentionLength> lengths, std::int64_t heads) const {
    if (lengths.empty() || heads * kClusterBlocks > clustered_.shape.slots) return false;
    return std::ranges::max(lengths, {}, &AttentionLength::blocks).blocks <=
           kClusterBlocks * kClusterWalk;
  }

  const AttentionConfig config_;
  const Placed small_, large_, clustered_;  // thread blocks; these are large ones
  CoupledTables coupled_;
  const Placed* chosen_ = nullptr;  // by the last Plan, as has_tails_ and grid_
  bool has_tails_ = false;
  int grid_ = 0;
  DeviceBuffer pieces_, partial_sums_, partial_tops_;
  PinnedBuffer staging_;
  std::optional<Event> copied_;
};

absl::StatusOr<Placed> Place(const AttentionKernel& kernel, const AttentionConfig& config,
                             float tile_cost) {
  int device = 0, blocks = 0;
  KVF_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "device of decode_attention"));
  KVF_ASSIGN_OR_RETURN(const DeviceInfo info, GetDevice(device));
  KVF_RETURN_IF_ERROR(
      CudaStatus(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      kernel.shared_bytes),
                 "shared memory of decode_attention"));
  KVF_RETURN_IF_ERROR(
      CudaStatus(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                     &blocks, kernel.function, kernel.warps * 32, kernel.shared_bytes),
                 "occupancy of decode_attention"));
  Placed placed = {.kernel = kernel, .shape = {}};
  placed.shape.kv_heads = config.kv_heads;
  placed.shape.query_rows = config.q_heads / config.kv_heads * config.query_tokens;
  placed.shape.slots = std::max(1, blocks) * info.multiprocessors;
  placed.shape.warps = kernel.warps;
  placed.shape.tile_cost = tile_cost;
  placed.shape.has_tails = blocks > 1;
  return placed;
}

// Large thread blocks in clusters; without slots where the device has none.
Placed InClusters(const Placed& large) {
  Placed placed = large;
  cudaLaunchAttribute dimension = ClusterDimension();
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(kClusterBlocks);
  launch.blockDim = dim3(large.kernel.warps * 32);
  launch.dynamicSmemBytes = large.kernel.shared_bytes;
  launch.attrs = &dimension;
  launch.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, large.kernel.function, &launch) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // before sm_90; it would be the next launch's
    clusters = 0;
  }
  placed.shape.slots = clusters * kClusterBlocks;
  placed.shape.has_tails = false;
  placed.shape.clustered = true;
  return placed;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeAttention>> DecodeAttention::Create(
    const AttentionConfig& config) {
  KVF_RETURN_IF_ERROR(Check(config));
  const AttentionVariant* variant = FindAttentionVariant(config.spec);
  if (variant == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("decode_attention on a GPU: ", codec::SpecText(config.spec),
                     " is not compiled; there are ", ListAttentionVariants()));
  }
  const int rows = config.q_heads / config.kv_heads * config.query_tokens;
  const AttentionKernels& kernels =
      rows <= variant->most_few_rows ? variant->few_rows : variant->any_rows;
  KVF_ASSIGN_OR_RETURN(const Placed small, Place(kernels.small, config, TileCost(config.spec)));
  Placed large = small;  // where shared memory is too small for the large thread block
  if (auto placed = Place(kernels.large, config, kLargeTileCost); placed.ok()) large = *placed;
  auto attention = std::make_unique<CudaDecodeAttention>(config, small, large, InClusters(large));
  KVF_RETURN_IF_ERROR(attention->Allocate());
  return attention;
}

}  // namespace kvferry::kernels
