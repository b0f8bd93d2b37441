#include "kvcodec/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvcodec/cpu/ops.h"
#include "kvcodec/cpu/reference.h"
#include "kvcodec/cpu/worker_pool.h"
#include "kvcodec/format.h"

namespace kvferry::codec {
namespace {

using cpu::HeadRows;

constexpr int kMaxThreads = 1024;
// Blocks of one work item. Fixed, so that the result does not depend on the number of threads.
constexpr std::size_t kItemBlocks = 16;

absl::Status Invalid(absl::string_view operation, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("cpu ", operation, ": ", what));
}

bool IsAligned(const void* pointer, std::uintptr_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

HeadRows RowsOf(const KvView& kv, int head) {
  return {kv.k + head * kv.head_stride, kv.v + head * kv.head_stride, kv.token_stride, kv.type};
}

std::string Describe(const cpu::BlockFault& fault, const BlockOrigin& origin, int head) {
  std::string where = absl::StrCat("layer ", origin.layer, ", head ", origin.kv_head_begin + head,
                                   ", ", fault.is_v ? "V" : "K");
  if (fault.token >= 0) absl::StrAppend(&where, ", token ", origin.token_begin + fault.token);
  if (fault.channel >= 0) absl::StrAppend(&where, ", channel ", fault.channel);
  return absl::StrCat(where, fault.not_finite ? ": the value is NaN or infinite"
                                              : ": the scale, min or zero point is outside fp16");
}

// The part of one sequence and KV head that one thread attends on.
struct WorkItem {
  int sequence = 0;
  int kv_head = 0;
  std::size_t block_begin = 0, block_end = 0;
  bool with_sinks = false, with_window = false;
};

// Work items in the order in which their results are merged. Head by head: the sequences read the
// same codebooks, if any.
std::vector<WorkItem> SplitWork(const AttentionArgs& args) {
  std::vector<WorkItem> items;
  for (int kv_head = 0; kv_head < args.kv_heads; ++kv_head) {
    for (int sequence = 0; sequence < static_cast<int>(args.sequences.size()); ++sequence) {
      const std::size_t blocks = args.sequences[sequence].pages.size();
      std::size_t begin = 0;
      do {
        const std::size_t end = std::min(blocks, begin + kItemBlocks);
        items.push_back({sequence, kv_head, begin, end, begin == 0, end == blocks});
        begin = end;
      } while (begin < blocks);
    }
  }
  return items;
}

absl::Status CheckRaw(const KvView& kv, const AttentionArgs& args, absl::string_view name) {
  if (kv.tokens == 0) return absl::OkStatus();
  if (kv.tokens < 0 || kv.k == nullptr || kv.v == nullptr || kv.kv_heads != args.kv_heads ||
      kv.head_dim != args.spec.head_dim) {
    return Invalid("attention", absl::StrCat(name, " of ", kv.tokens, " tokens, ", kv.kv_heads,
                                             " heads of ", kv.head_dim, " do not fit a call for ",
                                             args.kv_heads, " heads of ", args.spec.head_dim));
  }
  return absl::OkStatus();
}

absl::Status CheckAttention(const AttentionArgs& args) {
  KVF_RETURN_IF_ERROR(args.spec.Validate());
  KVF_RETURN_IF_ERROR(CheckCodebooks(args.spec, args.kv_heads));
  if (args.kv_heads <= 0 || args.q_heads <= 0 || args.q_heads % args.kv_heads != 0) {
    return Invalid("attention", absl::StrCat(args.q_heads, " query heads cannot share ",
                                             args.kv_heads, " KV heads"));
  }
  if (!args.sequences.empty() && (args.q == nullptr || args.out == nullptr)) {
    return Invalid("attention", "q or out is null");
  }
  for (std::size_t i = 0; i < args.sequences.size(); ++i) {
    const SequenceKv& sequence = args.sequences[i];
    KVF_RETURN_IF_ERROR(CheckRaw(sequence.sinks, args, "sinks"));
    KVF_RETURN_IF_ERROR(CheckRaw(sequence.window, args, "window"));
    if (sequence.sinks.tokens + sequence.window.tokens == 0 && sequence.pages.empty()) {
      return Invalid("attention", absl::StrCat("sequence ", i, " has no tokens"));
    }
    for (const std::byte* page : sequence.pages) {
      if (page == nullptr || !IsAligned(page, format::kAlignBytes)) {
        return Invalid("attention", absl::StrCat("a page of sequence ", i,
                                                 " is null or not aligned to 128 bytes"));
      }
    }
  }
  return absl::OkStatus();
}

// Scratch of one DecodeAttention call: the scaled queries and one softmax state per item.
class Scratch {
 public:
  Scratch(const AttentionArgs& args, std::size_t items)
      : group_(args.q_heads / args.kv_heads),
        head_dim_(args.spec.head_dim),
        state_floats_(Round(group_ * 2) + group_ * head_dim_) {
    const std::size_t q_floats = args.sequences.size() * args.q_heads * head_dim_;
    const std::size_t floats = q_floats + items * state_floats_ + kAlignFloats;
    // Kept per thread, because one layer follows another with the same sizes.
    static thread_local std::vector<float> memory;
    if (memory.size() < floats) memory.resize(floats);
    float* begin = memory.data();
    while (!IsAligned(begin, 64)) ++begin;
    q_ = begin;
    states_ = begin + q_floats;
    const float factor = args.scale * std::numbers::log2e_v<float>;
    for (std::size_t i = 0; i < q_floats; ++i) q_[i] = args.q[i] * factor;
  }

  cpu::QueryGroup Queries(int sequence, int kv_head, int kv_heads) const {
    const std::size_t first = (static_cast<std::size_t>(sequence) * kv_heads + kv_head) * group_;
    return {q_ + first * head_dim_, static_cast<int>(group_), static_cast<int>(head_dim_)};
  }
  cpu::SoftmaxState State(std::size_t item) const {
    float* begin = states_ + item * state_floats_;
    return {begin, begin + group_, begin + Round(group_ * 2)};
  }
  // Nothing attended yet.
  cpu::SoftmaxState Clear(std::size_t item) const {
    const cpu::SoftmaxState state = State(item);
    std::fill_n(state.m, group_, -INFINITY);
    std::fill_n(state.l, group_, 0.0f);
    std::fill_n(state.o, group_ * head_dim_, 0.0f);
    return state;
  }

 private:
  static constexpr std::size_t kAlignFloats = 16;
  static constexpr std::size_t Round(std::size_t floats) {
    return (floats + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
  }

  const std::size_t group_, head_dim_, state_floats_;
  float* q_ = nullptr;
  float* states_ = nullptr;
};

// out = sum of o * 2^(m - max m) / sum of l * 2^(m - max m), in item order.
void MergeHead(const Scratch& scratch, std::size_t item_begin, std::size_t item_end, int head,
               int head_dim, float* out) {
  float m = -INFINITY, l = 0;
  for (std::size_t i = item_begin; i < item_end; ++i) m = std::max(m, scratch.State(i).m[head]);
  std::fill_n(out, head_dim, 0.0f);
  for (std::size_t i = item_begin; i < item_end; ++i) {
    const cpu::SoftmaxState state = scratch.State(i);
    const float weight = std::exp2(state.m[head] - m);
    l += weight * state.l[head];
    const float* o = state.o + static_cast<std::ptrdiff_t>(head) * head_dim;
    for (int channel = 0; channel < head_dim; ++channel) out[channel] += weight * o[channel];
  }
  for (int channel = 0; channel < head_dim; ++channel) out[channel] /= l;
}

// Thread: any, calls share the worker pool.
class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuBackendOptions& options)
      : ops_(options.scalar ? cpu::ReferenceOps() : cpu::SimdOps()), pool_(options.threads - 1) {}

  std::string name() const override { return absl::StrCat("cpu-", ops_.name()); }

  absl::Status Supports(const BlockSpec& spec) const override {
    absl::Status status = spec.Validate();
    if (status.ok()) return CheckCodebooks(spec, 1);
    return absl::UnimplementedError(
        absl::StrCat(name(), " has every valid block spec, but: ", status.message()));
  }

  absl::Status Quantize(const KvView& kv, const BlockSpec& spec, const BlockOrigin& origin,
                        std::span<std::byte> page) const override {
    KVF_RETURN_IF_ERROR(CheckQuantize(kv, spec, page));
    KVF_RETURN_IF_ERROR(CheckCodebooks(spec, origin.kv_head_begin + kv.kv_heads));
    const std::size_t block_bytes = BlockBytes(spec);
    for (int head = 0; head < kv.kv_heads; ++head) {
      HeadRows rows = RowsOf(kv, head);
      rows.place = {origin.kv_head_begin + head, origin.token_begin};
      if (head + 1 < kv.kv_heads) rows.next_k = kv.k + (head + 1) * kv.head_stride;
      if (ops_.quantize(rows, spec, page.data() + head * block_bytes)) continue;
      const std::optional<cpu::BlockFault> fault = cpu::FindFault(rows, spec);
      return Invalid("quantize", fault ? Describe(*fault, origin, head)
                                       : absl::StrCat("layer ", origin.layer,
                                                      ": the values changed during the call"));
    }
    return absl::OkStatus();
  }

  absl::Status Dequantize(std::span<const std::byte> page, const BlockSpec& spec,
                          const BlockOrigin& origin, int kv_heads, std::span<float> k,
                          std::span<float> v) const override {
    KVF_RETURN_IF_ERROR(spec.Validate());
    KVF_RETURN_IF_ERROR(CheckCodebooks(spec, origin.kv_head_begin + kv_heads));
    const std::size_t values = std::size_t{kBlockTokens} * spec.head_dim;
    if (kv_heads <= 0 || page.size() != PageBytes(spec, kv_heads) ||
        k.size() != values * kv_heads || v.size() != values * kv_heads) {
      return Invalid("dequantize", absl::StrCat("a page of ", page.size(), " bytes into ", k.size(),
                                                " K and ", v.size(), " V values for ", kv_heads,
                                                " heads of ", spec.head_dim));
    }
    for (int head = 0; head < kv_heads; ++head) {
      cpu::DequantizeBlock(page.data() + head * BlockBytes(spec), spec,
                           {origin.kv_head_begin + head, origin.token_begin},
                           k.data() + head * values, v.data() + head * values);
    }
    return absl::OkStatus();
  }

  absl::Status DecodeAttention(const AttentionArgs& args) const override {
    KVF_RETURN_IF_ERROR(CheckAttention(args));
    const std::vector<WorkItem> items = SplitWork(args);
    const Scratch scratch(args, items.size());
    pool_.Run(static_cast<int>(items.size()), [&](int i) {
      Attend(args, items[i], FirstBlock(args, items, i + 1), scratch, scratch.Clear(i));
    });
    Merge(args, items, scratch);
    return absl::OkStatus();
  }

 private:
  static absl::Status CheckQuantize(const KvView& kv, const BlockSpec& spec,
                                    std::span<std::byte> page) {
    KVF_RETURN_IF_ERROR(spec.Validate());
    if (kv.k == nullptr || kv.v == nullptr || kv.kv_heads <= 0 || kv.tokens != kBlockTokens ||
        kv.head_dim != spec.head_dim) {
      return Invalid("quantize",
                     absl::StrCat(kv.kv_heads, " heads of ", kv.tokens, " tokens of ", kv.head_dim,
                                  " channels, must be 64 tokens of ", spec.head_dim));
    }
    if (spec.kind == BlockKind::kRaw16 && kv.type != spec.raw_type) {
      return Invalid("quantize", "a raw16 block must have the 16-bit type of its values");
    }
    if (page.size() != PageBytes(spec, kv.kv_heads) ||
        !IsAligned(page.data(), format::kAlignBytes)) {
      return Invalid("quantize",
                     absl::StrCat("page of ", page.size(), " bytes, must be ",
                                  PageBytes(spec, kv.kv_heads), " and aligned to 128 bytes"));
    }
    return absl::OkStatus();
  }

  // Where item i begins to read, or null.
  static const std::byte* FirstBlock(const AttentionArgs& args, const std::vector<WorkItem>& items,
                                     std::size_t i) {
    if (i >= items.size() || items[i].block_begin == items[i].block_end) return nullptr;
    return args.sequences[items[i].sequence].pages[items[i].block_begin] +
           items[i].kv_head * BlockBytes(args.spec);
  }

  void Attend(const AttentionArgs& args, const WorkItem& item, const std::byte* after,
              const Scratch& scratch, const cpu::SoftmaxState& state) const {
    const SequenceKv& sequence = args.sequences[item.sequence];
    const cpu::QueryGroup group = scratch.Queries(item.sequence, item.kv_head, args.kv_heads);
    if (item.with_sinks && sequence.sinks.tokens > 0) {
      ops_.attend_raw(RowsOf(sequence.sinks, item.kv_head), sequence.sinks.tokens, group, state);
    }
    if (item.block_begin < item.block_end) {
      const cpu::HeadBlocks blocks = {
          sequence.pages.data() + item.block_begin, item.block_end - item.block_begin,
          item.kv_head * BlockBytes(args.spec), after, PlaceOf(sequence, item)};
      ops_.attend_blocks(blocks, args.spec, group, state);
    }
    if (item.with_window && sequence.window.tokens > 0) {
      ops_.attend_raw(RowsOf(sequence.window, item.kv_head), sequence.window.tokens, group, state);
    }
  }

  static cpu::BlockPlace PlaceOf(const SequenceKv& sequence, const WorkItem& item) {
    return {item.kv_head,
            sequence.sinks.tokens + static_cast<std::int64_t>(item.block_begin) * kBlockTokens};
  }

  static void Merge(const AttentionArgs& args, const std::vector<WorkItem>& items,
                    const Scratch& scratch) {
    const int group = args.q_heads / args.kv_heads, d = args.spec.head_dim;
    for (std::size_t begin = 0, end = 0; begin < items.size(); begin = end) {
      for (end = begin + 1; end < items.size() && !items[end].with_sinks; ++end) {
      }
      const std::size_t first_head =
          (static_cast<std::size_t>(items[begin].sequence) * args.kv_heads + items[begin].kv_head) *
          group;
      for (int head = 0; head < group; ++head) {
        MergeHead(scratch, begin, end, head, d, args.out + (first_head + head) * d);
      }
    }
  }

  const cpu::Ops& ops_;
  mutable cpu::WorkerPool pool_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options) {
  if (options.threads < 1 || options.threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("cpu backend: threads is ", options.threads, ", must be 1..", kMaxThreads));
  }
  return std::make_unique<CpuBackend>(options);
}

}  // namespace kvferry::codec
