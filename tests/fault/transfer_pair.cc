#include "tests/fault/transfer_pair.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "common/status_macros.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "prefill_node/chunk_encoder.h"
#include "tests/fakes/wait_limit.h"

namespace kvferry::fault {
namespace {

const absl::Duration kLong = 3 * fakes::kWaitLimit;
constexpr int kMaxTokens = 700;
constexpr int kVocabulary = 100;
constexpr Incarnation kPrefill{11};
constexpr Incarnation kDecode{22};

template <typename Factory>
Factory LoopbackFactory(transport::LoopbackNetwork& network, absl::Duration silence_limit,
                        fakes::DevicePaths* device) {
  return [&network, silence_limit, device](
             Incarnation incarnation, transport::MessageSink* sink,
             const Clock& clock) -> absl::StatusOr<std::unique_ptr<transport::Transport>> {
    KVF_ASSIGN_OR_RETURN(
        std::unique_ptr<transport::Transport> loopback,
        network.CreateTransport({.incarnation = static_cast<std::uint64_t>(incarnation),
                                 .heartbeat_interval = absl::Milliseconds(50),
                                 .silence_limit = silence_limit},
                                sink, clock));
    if (device == nullptr) return loopback;
    return std::make_unique<fakes::DevicePathTransport>(std::move(loopback), *device);
  };
}

}  // namespace

void Outcome::OnAdopted(decode::AdoptedSequence adopted) {
  absl::MutexLock lock(&mutex_);
  EXPECT_FALSE(sequence_.has_value()) << "adopted twice";
  sequence_ = std::move(adopted);
  if (!receiver_.has_value()) receiver_ = absl::OkStatus();
}

void Outcome::OnFailed(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  receiver_ = why;
}

void Outcome::OnResult(const prefill::TransferResult& result) {
  absl::MutexLock lock(&mutex_);
  EXPECT_FALSE(sender_.has_value()) << "two results";
  sender_ = result.status;
}

absl::Status Outcome::WaitSender() {
  absl::MutexLock lock(&mutex_);
  const auto ready = [&] { return sender_.has_value(); };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&ready), kLong)) {
    return absl::DeadlineExceededError("the sender says nothing");
  }
  return *sender_;
}

absl::Status Outcome::WaitReceiver() {
  absl::MutexLock lock(&mutex_);
  const auto ready = [&] { return receiver_.has_value(); };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&ready), kLong)) {
    return absl::DeadlineExceededError("the receiver says nothing");
  }
  return *receiver_;
}

std::optional<decode::AdoptedSequence> Outcome::TakeSequence() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(sequence_, std::nullopt);
}

TransferPair::TransferPair(const PairOptions& options)
    : options_(options),
      codec_(codec::FindCodec(options.codec).value()),
      backend_(codec::CreateCpuBackend({.threads = 1}).value()),
      memory_(*backend_),
      metrics_(Metrics::Create()),
      network_(transport::LoopbackNetwork::Create()) {
  for (int layer = 0; layer < options.geometry.layers; ++layer) {
    specs_.push_back(codec_.ForLayer(layer, options.geometry.head_dim).value());
    values_.emplace_back(options.geometry, layer, kMaxTokens);
  }
  store_ = decode::CacheStore::Create(
               {.codec = codec_, .geometry = options.geometry, .pool_bytes = 4 << 20}, memory_)
               .value();
  sender_ = prefill::DataPlane::Create({.incarnation = kPrefill,
                                        .slot_bytes = options.slot_bytes,
                                        .slots = options.send_slots,
                                        .limits = {.ack_deadline = options.ack_deadline,
                                                   .max_resends = options.max_resends,
                                                   .progress_limit = options.progress_limit}},
                                       LoopbackFactory<prefill::TransportFactory>(
                                           *network_, options.silence_limit,
                                           options.sender_on_device ? &device_paths_ : nullptr),
                                       Clock::Steady(), *metrics_)
                .value();
  receiver_ = decode::DataPlane::Create({.incarnation = kDecode,
                                         .slot_bytes = options.slot_bytes,
                                         .slots = options.landing_slots,
                                         .limits = {.lease = options.lease,
                                                    .progress_limit = options.progress_limit,
                                                    .abort_interval = options.ack_deadline,
                                                    .max_resends = options.max_resends},
                                         .admission = {.window = codec_.window,
                                                       .max_context_tokens = kMaxTokens,
                                                       .rows = store_->rows(),
                                                       .max_sequences = 8,
                                                       .credits_per_transfer = 3},
                                         .vocabulary = kVocabulary,
                                         .step_time = [] { return absl::Milliseconds(1); },
                                         .adopter_threads = options.adopter_threads},
                                        *store_,
                                        LoopbackFactory<decode::TransportFactory>(
                                            *network_, options.silence_limit,
                                            options.receiver_on_device ? &device_paths_ : nullptr),
                                        Clock::Steady(), *metrics_)
                  .value();
  Connect();
}

TransferPair::~TransferPair() {
  sender_->Stop();
  receiver_->Stop();
}

void TransferPair::Connect() {
  transport::PairKey key;
  for (std::uint8_t& byte : key) byte = static_cast<std::uint8_t>(RandomId64());
  ASSERT_TRUE(receiver_
                  ->AddPeer({.incarnation = kPrefill,
                             .name = "prefill-0",
                             .data_address = sender_->LocalAddress(),
                             .key = key})
                  .ok());
  ASSERT_TRUE(sender_
                  ->AddPeer({.incarnation = kDecode,
                             .name = "decode-0",
                             .data_address = receiver_->LocalAddress(),
                             .key = key})
                  .ok());
}

void TransferPair::Partition(bool cut) {
  network_->Partition(sender_->LocalAddress(), receiver_->LocalAddress(), cut);
}

absl::StatusOr<Transfer> TransferPair::Open(int tokens, int new_tokens) {
  const decode::Demand demand{.prompt_tokens = static_cast<std::uint32_t>(tokens),
                              .max_new_tokens = static_cast<std::uint32_t>(new_tokens)};
  const decode::Reservation grant = receiver_->Reserve("request", demand, Epoch{1}, {});
  KVF_RETURN_IF_ERROR(grant.admission.status);
  Transfer transfer{.id = grant.id, .tokens = tokens};
  KVF_ASSIGN_OR_RETURN(transfer.chunks,
                       prefill::LayoutChunks({.plan = codec::PlanBlocks(tokens, codec_.window),
                                              .geometry = options_.geometry,
                                              .layers = specs_,
                                              .step_tokens = 128,
                                              .slot_bytes = options_.slot_bytes,
                                              .target_bytes = options_.slot_bytes / 4}));
  KVF_RETURN_IF_ERROR(receiver_->OpenRun(grant.id, Epoch{1}, demand, transfer.outcome));
  KVF_RETURN_IF_ERROR(sender_->OpenTransfer(
      {.id = grant.id,
       .epoch = Epoch{1},
       .decode = kDecode,
       .credits = grant.admission.credits,
       .on_result = [outcome = transfer.outcome](const prefill::TransferResult& result) {
         outcome->OnResult(result);
       }}));
  ExpectConservation();
  return transfer;
}

absl::Status TransferPair::SendChunk(const Transfer& transfer, std::size_t index) {
  const prefill::ChunkPlan& chunk = transfer.chunks[index];
  std::vector<codec::KvView> views;
  for (const fakes::LayerKv& layer : values_) views.push_back(layer.View());
  KVF_ASSIGN_OR_RETURN(prefill::SendSlot slot, sender_->AcquireSlot(transfer.id));
  const std::span<std::byte> payload = slot.bytes().first(chunk.bytes);
  KVF_ASSIGN_OR_RETURN(const std::uint32_t check,
                       prefill::EncodeChunk(chunk, specs_, views, *backend_, payload));
  ExpectConservation();
  return sender_->SendChunk(
      transfer.id,
      {.layer_begin = static_cast<std::uint16_t>(chunk.layer_begin),
       .layer_count = static_cast<std::uint16_t>(chunk.layer_count),
       .kv_head_count = static_cast<std::uint16_t>(options_.geometry.kv_heads),
       .token_begin = static_cast<std::uint32_t>(chunk.token_begin),
       .token_count = static_cast<std::uint32_t>(chunk.token_count),
       .head_dim = static_cast<std::uint16_t>(options_.geometry.head_dim),
       .kind = chunk.kind,
       .codec_hash = codec_.Hash(),
       .payload_check = check,
       .payload_bytes = static_cast<std::uint32_t>(chunk.bytes)},
      std::move(slot));
}

absl::Status TransferPair::SendChunks(const Transfer& transfer, std::size_t from, std::size_t to) {
  for (std::size_t chunk = from; chunk < to; ++chunk) {
    KVF_RETURN_IF_ERROR(SendChunk(transfer, chunk));
  }
  return absl::OkStatus();
}

absl::Status TransferPair::Commit(const Transfer& transfer) {
  ExpectConservation();
  return sender_->Commit(transfer.id, kFirstToken);
}

void TransferPair::AbortSender(const Transfer& transfer) {
  sender_->Abort(transfer.id, absl::CancelledError("the sender gives up"));
  ExpectConservation();
}

void TransferPair::ReleaseReceiver(const Transfer& transfer) {
  receiver_->Release(transfer.id, Epoch{1}, absl::CancelledError("the receiver gives up"));
  ExpectConservation();
}

void TransferPair::CheckAndFinish(const Transfer& transfer) {
  ExpectConservation();
  std::optional<decode::AdoptedSequence> adopted = transfer.outcome->TakeSequence();
  ASSERT_TRUE(adopted.has_value());
  EXPECT_EQ(adopted->first_token, kFirstToken);
  EXPECT_EQ(adopted->chunks, transfer.chunks.size());
  for (int layer = 0; layer < options_.geometry.layers; ++layer) {
    CheckLayer(transfer, adopted->cache->View(layer), layer);
  }
  adopted->cache.reset();
  receiver_->Finish(transfer.id);
}

void TransferPair::CheckLayer(const Transfer& transfer, const codec::SequenceKv& kv, int layer) {
  const codec::BlockPlan plan = codec::PlanBlocks(transfer.tokens, codec_.window);
  const codec::KvView view = values_[layer].View();
  ASSERT_EQ(kv.pages.size(), static_cast<std::size_t>(plan.blocks));
  const std::size_t page = codec::PageBytes(specs_[layer], options_.geometry.kv_heads);
  std::vector<std::byte> storage(page + 128);
  void* aligned = storage.data();
  std::size_t space = storage.size();
  const std::span<std::byte> expected(
      static_cast<std::byte*>(std::align(128, page, aligned, space)), page);
  for (int block = 0; block < plan.blocks; ++block) {
    ASSERT_TRUE(backend_
                    ->Quantize(view.Tokens(plan.block_begin(block), codec::kBlockTokens),
                               specs_[layer], {}, expected)
                    .ok());
    ASSERT_EQ(std::memcmp(kv.pages[block], expected.data(), page), 0)
        << "layer " << layer << ", block " << block;
  }
  const auto check_raw = [&](const codec::KvView& part, int begin, int count) {
    ASSERT_EQ(part.tokens, count);
    for (int head = 0; head < part.kv_heads; ++head) {
      for (int token = 0; token < count; ++token) {
        for (int channel = 0; channel < part.head_dim; ++channel) {
          const std::int64_t at = head * part.head_stride + token * part.token_stride + channel;
          ASSERT_EQ(part.k[at], fakes::KvValue(false, layer, head, begin + token, channel));
          ASSERT_EQ(part.v[at], fakes::KvValue(true, layer, head, begin + token, channel));
        }
      }
    }
  };
  check_raw(kv.sinks, 0, plan.sinks);
  check_raw(kv.window, plan.window_begin, plan.window_tokens());
}

void TransferPair::ExpectAllFree() {
  EXPECT_TRUE(sender_->WaitIdle(kLong));
  EXPECT_TRUE(receiver_->WaitIdle(kLong));
  EXPECT_EQ(sender_->free_slots(), options_.send_slots * (options_.sender_on_device ? 2 : 1));
  EXPECT_EQ(receiver_->free_slots(), receiver_->slots());
  EXPECT_EQ(store_->free_rows(), store_->rows());
  ExpectConservation();
}

void TransferPair::ExpectConservation() {
  const absl::Status books = store_->CheckConservation();
  ASSERT_TRUE(books.ok()) << books;
}

}  // namespace kvferry::fault
