#include "transport/ucx/ucx_transport.h"

#include <ucp/api/ucp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <future>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "common/work_queue.h"
#include "transport/pending_done.h"
#include "transport/ucx/address.h"
#include "transport/ucx/handles.h"
#include "transport/ucx/path.h"
#include "transport/ucx/peer_table.h"
#include "transport/ucx/progress.h"
#include "transport/ucx/region.h"
#include "transport/ucx/send_op.h"
#include "transport/ucx/ucx_peer.h"

namespace kvferry::transport {
namespace {

constexpr std::size_t kRendezvousBytes = 16 << 10;  // from here on the payload lands without a copy
// While payloads are on their way to a GPU it polls for at least this long: to sleep, UCX puts a
// host function into the GPU's stream of copies, behind which the next copy waits.
constexpr absl::Duration kDevicePoll = absl::Milliseconds(1);
constexpr absl::Duration kCloseLimit =
    absl::Seconds(5);  // of connections, when the transport stops

}  // namespace

// All UCX objects belong to the progress thread; other threads push work to it. Regions are the
// exception: the context is shared.
class UcxTransport final : public Transport {
 public:
  UcxTransport(const UcxOptions& options, MessageSink* sink, const Clock& clock, ContextPtr context,
               WorkerPtr worker, UcxAddress address, std::vector<Path> paths, int worker_fd,
               std::unique_ptr<WorkQueue> work)
      : options_(options),
        sink_(*sink),
        clock_(clock),
        context_(std::move(context)),
        worker_(std::move(worker)),
        address_(std::move(address)),
        paths_(std::move(paths)),
        work_(std::move(work)),
        progress_(worker_.get(), worker_fd, *work_, clock, options.poll),
        waiting_(options.rate_limit_bytes_per_s) {}

  absl::Status RegisterHandlers() {
    for (std::uint8_t type = 1; type <= static_cast<std::uint8_t>(MessageType::kAbortAck); ++type) {
      handlers_[type] = {this, static_cast<MessageType>(type)};
      ucp_am_handler_param_t params{};
      params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                          UCP_AM_HANDLER_PARAM_FIELD_ARG;
      params.id = type;
      params.cb = &UcxTransport::OnActiveMessage;
      params.arg = &handlers_[type];
      KVF_RETURN_IF_ERROR(FromUcs(ucp_worker_set_am_recv_handler(worker_.get(), &params),
                                  "register an Active Message"));
    }
    return absl::OkStatus();
  }

  void StartThread() {
    thread_ = std::thread([this] { Run(); });
    Post([this] { Heartbeat(); }, options_.heartbeat_interval);
  }

  ~UcxTransport() override { Stop(); }

  std::string LocalAddress() const override { return PackAddress(address_); }
  std::vector<Path> paths() const override { return paths_; }
  absl::StatusOr<Path> PathTo(std::string_view address) const override {
    KVF_ASSIGN_OR_RETURN(const UcxAddress peer, UnpackAddress(address));
    return ChoosePath(paths_, address_, peer);
  }

  absl::StatusOr<std::unique_ptr<Region>> Allocate(std::size_t bytes, MemoryKind memory) override {
    const auto in = [memory](const Path& path) { return path.memory == memory; };
    if (std::none_of(paths_.begin(), paths_.end(), in)) {
      return absl::FailedPreconditionError(
          absl::StrCat("a region of ", bytes, " bytes in memory that no path of this process has"));
    }
    if (memory == MemoryKind::kHost) return CreateHostRegion(context_.get(), regions_, bytes);
    return CreateDeviceRegion(context_.get(), regions_, *options_.device, bytes);
  }

  absl::StatusOr<PeerHandle> Connect(std::string_view address, std::uint64_t peer_incarnation,
                                     std::string_view peer_name) override {
    KVF_ASSIGN_OR_RETURN(UcxAddress to, UnpackAddress(address));
    KVF_ASSIGN_OR_RETURN(const Path path, ChoosePath(paths_, address_, to));
    const PeerHandle handle{next_handle_.fetch_add(1)};
    if (OnProgressThread()) {
      OpenPeer(handle, peer_incarnation, std::string(peer_name), to.worker, path);
      return handle;
    }
    Post([this, handle, peer_incarnation, name = std::string(peer_name),
          worker = std::move(to.worker),
          path] { OpenPeer(handle, peer_incarnation, name, worker, path); });
    return handle;
  }

  void Send(PeerHandle peer, MessageType type, std::span<const std::byte> header,
            std::span<const std::byte> payload, SendDone done) override {
    auto send = std::make_unique<SendOp>();
    send->transport = this;
    send->peer = peer;
    send->type = type;
    send->header.resize(sizeof(SenderPrefix) + header.size());
    const SenderPrefix prefix{kSenderMagic, 0, options_.incarnation};
    std::memcpy(send->header.data(), &prefix, sizeof(prefix));
    std::copy(header.begin(), header.end(), send->header.begin() + sizeof(prefix));
    send->payload = payload;
    send->done = PendingDone(std::move(done));
    if (OnProgressThread()) {
      Admit(std::move(send));
      return;
    }
    // std::function wants to be copyable: the operation travels as a shared_ptr until it is
    // admitted.
    auto shared = std::make_shared<std::unique_ptr<SendOp>>(std::move(send));
    Post([this, shared] { Admit(std::move(*shared)); });
  }

  void Disconnect(PeerHandle peer) override {
    Post([this, peer] {
      if (UcxPeer* found = peers_.Find(peer))
        BeginClose(*found, absl::CancelledError(absl::StrCat("disconnected from ", found->name)));
    });
  }

  void Post(std::function<void()> work, absl::Duration delay = absl::ZeroDuration()) override {
    work_->Push(std::move(work), delay);
  }

  void Stop() override {
    if (!thread_.joinable()) return;
    Post([this] { stopping_ = true; });
    thread_.join();
  }

 private:
  struct Handler {
    UcxTransport* transport = nullptr;
    MessageType type{};
  };
  // One accepted payload, until UCX has completed it.
  struct ReceiveOp {
    UcxTransport* transport = nullptr;
    PeerHandle peer{};
    std::uint64_t cookie = 0;
    bool on_device = false;
  };

  // ---- the progress loop ----

  static const UcxTransport*& CurrentTransport() {
    thread_local const UcxTransport* current = nullptr;
    return current;
  }
  bool OnProgressThread() const { return CurrentTransport() == this; }

  void Run() {
    CurrentTransport() = this;
    if (options_.device != nullptr) {
      // UCX copies on the GPU of the thread that progresses it. An error is one of the context,
      // which every later copy meets again.
      if (absl::Status status = options_.device->Use(); !status.ok())
        Log(LogLevel::kError, "gpu_unusable", {{"why", status}});
    }
    while (!stopping_) {
      progress_.Run();
      Settle();
      if (stopping_) break;
      progress_.Rest(device_receives_ > 0 ? kDevicePoll : absl::ZeroDuration());
    }
    CloseAll();
    worker_.reset();  // here, where what it still completes may be called
  }

  // Closes peers that are lost, and reports those whose last operation has ended. Callbacks may
  // connect and send meanwhile, so the map is not walked while they run.
  void Settle() {
    for (const PeerHandle handle :
         peers_.Where([](const UcxPeer& peer) { return !peer.lost.ok() && !peer.closing; })) {
      StartClose(*peers_.Find(handle));
    }
    for (const PeerHandle handle :
         peers_.Where([](const UcxPeer& peer) { return peer.closing && peer.idle(); })) {
      const std::unique_ptr<UcxPeer> peer = peers_.Remove(handle);
      sink_.OnPeerLost(handle, peer->lost);
    }
  }

  void CloseAll() {
    work_->Close();  // sends that nobody has looked at yet end as cancelled
    waiting_.Drop(absl::CancelledError("the transport stops"), [](const SendOp&) { return true; });
    for (const auto& [handle, peer] : peers_.all())
      BeginClose(*peer, absl::CancelledError("the transport stops"));
    const MonoTime deadline = clock_.Now() + kCloseLimit;
    Settle();
    while (!peers_.empty() && clock_.Now() < deadline) {
      progress_.Run();
      Settle();
      if (!peers_.empty()) progress_.Rest();
    }
    for (const auto& [handle, peer] : peers_.all()) {
      Log(LogLevel::kError, "peer_close_unfinished",
          {{"peer", peer->name}, {"sends", peer->sends}, {"receives", peer->receives}});
    }
  }

  // ---- peers ----

  void OpenPeer(PeerHandle handle, std::uint64_t incarnation, const std::string& name,
                const std::string& worker_address, const Path& path) {
    auto peer = std::make_unique<UcxPeer>();
    peer->handle = handle;
    peer->name = name;
    peer->incarnation = incarnation;
    peer->last_heard = clock_.Now();
    absl::Status why = OpenEndpoints(*peer, worker_address);
    if (!why.ok() && peer->endpoint == nullptr) {
      Log(LogLevel::kWarning, "peer_unreachable", {{"peer", name}, {"why", why}});
      Post([this, handle, why] { sink_.OnPeerLost(handle, why); });
      return;
    }
    if (why.ok()) {
      why = LanesMatch(*peer, path);
      if (!why.ok()) Log(LogLevel::kError, "path_missing", {{"peer", name}, {"why", why}});
    }
    if (!why.ok()) BeginClose(*peer, std::move(why));
    peers_.Add(std::move(peer));
  }

  // The second one only where there is the first.
  absl::Status OpenEndpoints(UcxPeer& peer, const std::string& worker_address) {
    for (ucp_ep_h* endpoint : {&peer.endpoint, &peer.heartbeats}) {
      KVF_ASSIGN_OR_RETURN(*endpoint, OpenEndpoint(worker_.get(), worker_address, peer.name,
                                                   &UcxTransport::OnEndpointError, &peer));
    }
    return absl::OkStatus();
  }

  static absl::Status LanesMatch(const UcxPeer& peer, const Path& path) {
    KVF_ASSIGN_OR_RETURN(const std::vector<std::string> lanes, EndpointLanes(peer.endpoint));
    return CheckLanes(lanes, peer.name, path);
  }

  static void OnEndpointError(void* arg, ucp_ep_h, ucs_status_t status) {
    auto& peer = *static_cast<UcxPeer*>(arg);
    if (peer.lost.ok()) peer.lost = FromUcs(status, absl::StrCat("connection to ", peer.name));
    // The endpoint may not be closed in here; Settle does it.
  }

  void BeginClose(UcxPeer& peer, absl::Status why) {
    if (peer.lost.ok()) peer.lost = std::move(why);
  }

  void StartClose(UcxPeer& peer) {
    peer.closing = true;
    if (absl::IsUnavailable(peer.lost))
      Log(LogLevel::kWarning, "peer_lost", {{"peer", peer.name}, {"why", peer.lost}});
    const PeerHandle handle = peer.handle;
    waiting_.Drop(peer.lost, [handle](const SendOp& send) { return send.peer == handle; });
    CloseEndpoint(peer, peer.endpoint);
    CloseEndpoint(peer, peer.heartbeats);
  }

  void CloseEndpoint(UcxPeer& peer, ucp_ep_h& endpoint) {
    if (endpoint == nullptr) return;
    ucp_request_param_t params{};
    params.op_attr_mask =
        UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    params.flags = UCP_EP_CLOSE_FLAG_FORCE;
    params.cb.send = &UcxTransport::OnClosed;
    params.user_data = &peer;
    ++peer.open_closes;
    const ucs_status_ptr_t request = ucp_ep_close_nbx(std::exchange(endpoint, nullptr), &params);
    if (!UCS_PTR_IS_PTR(request)) --peer.open_closes;
  }

  static void OnClosed(void* request, ucs_status_t, void* user_data) {
    --static_cast<UcxPeer*>(user_data)->open_closes;
    ucp_request_free(request);
  }

  void Heartbeat() {
    for (const auto& [handle, peer] : peers_.all()) {
      if (!peer->lost.ok()) continue;
      const absl::Duration silent = clock_.Now() - peer->last_heard;
      if (silent > options_.silence_limit) {
        BeginClose(*peer, absl::UnavailableError(absl::StrCat(peer->name, " has been silent for ",
                                                              absl::FormatDuration(silent))));
        continue;
      }
      Send(handle, MessageType::kHeartbeat, {}, {}, [](const absl::Status&) {});
    }
    Post([this] { Heartbeat(); }, options_.heartbeat_interval);
  }

  // ---- sending ----

  void Admit(std::unique_ptr<SendOp> send) {
    if (send->payload.empty() || !waiting_.limited()) {
      PostSend(std::move(send));
      return;
    }
    waiting_.Push(std::move(send));
    PumpWaiting();
  }

  void PumpWaiting() {
    absl::Duration wait;
    while (std::unique_ptr<SendOp> send = waiting_.Take(clock_.Now(), wait))
      PostSend(std::move(send));
    if (wait == absl::ZeroDuration() || std::exchange(pump_posted_, true)) return;
    Post(
        [this] {
          pump_posted_ = false;
          PumpWaiting();
        },
        wait);
  }

  void PostSend(std::unique_ptr<SendOp> send) {
    UcxPeer* peer = peers_.Find(send->peer);
    if (peer == nullptr || !peer->lost.ok()) {
      send->done(peer == nullptr ? absl::UnavailableError("the peer is not connected")
                                 : peer->lost);
      return;
    }
    ucp_request_param_t params{};
    params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK |
                          UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
    const ucs_memory_type_t memory = MemoryOf(send->payload);
    const bool rendezvous =
        send->payload.size() >= kRendezvousBytes || memory == UCS_MEMORY_TYPE_CUDA;
    params.flags = rendezvous ? UCP_AM_SEND_FLAG_RNDV : UCP_AM_SEND_FLAG_EAGER;
    params.memory_type = memory;
    if (rendezvous) UseRegion(send->payload, params);
    params.cb.send = &UcxTransport::OnSent;
    params.user_data = send.get();
    const ucp_ep_h endpoint =
        send->type == MessageType::kHeartbeat ? peer->heartbeats : peer->endpoint;
    const ucs_status_ptr_t request =
        ucp_am_send_nbx(endpoint, static_cast<unsigned>(send->type), send->header.data(),
                        send->header.size(), send->payload.data(), send->payload.size(), &params);
    if (UCS_PTR_IS_PTR(request)) {
      ++peer->sends;
      static_cast<void>(send.release());  // OnSent takes it back
      return;
    }
    send->done(FromUcs(UCS_PTR_STATUS(request), absl::StrCat("send to ", peer->name)));
  }

  static void OnSent(void* request, ucs_status_t status, void* user_data) {
    const std::unique_ptr<SendOp> send(static_cast<SendOp*>(user_data));
    ucp_request_free(request);
    UcxPeer* peer = send->transport->peers_.Find(send->peer);
    if (peer != nullptr) --peer->sends;
    absl::Status result =
        FromUcs(status, absl::StrCat("send to ", peer == nullptr ? "a lost peer" : peer->name));
    if (!result.ok() && peer != nullptr && !peer->lost.ok()) result = peer->lost;
    send->done(result);
  }

  // ---- receiving ----

  static ucs_status_t OnActiveMessage(void* arg, const void* header, size_t header_bytes,
                                      void* data, size_t data_bytes,
                                      const ucp_am_recv_param_t* param) {
    const Handler& handler = *static_cast<Handler*>(arg);
    return handler.transport->Receive(handler.type,
                                      {static_cast<const std::byte*>(header), header_bytes}, data,
                                      data_bytes, *param);
  }

  // UCS_OK without having taken the payload refuses it: UCX completes the sender and discards the
  // data.
  ucs_status_t Receive(MessageType type, std::span<const std::byte> framed, void* data,
                       std::size_t data_bytes, const ucp_am_recv_param_t& param) {
    SenderPrefix prefix;
    if (framed.size() < sizeof(prefix) || framed.size() - sizeof(prefix) > kMaxHeaderBytes)
      return UCS_OK;
    std::memcpy(&prefix, framed.data(), sizeof(prefix));
    if (prefix.magic != kSenderMagic || prefix.reserved != 0) return UCS_OK;
    const PeerHandle from = peers_.FindIncarnation(prefix.incarnation);
    if (UcxPeer* peer = peers_.Find(from)) {
      if (!peer->lost.ok()) return UCS_OK;  // already given up: nothing of it is taken any more
      peer->last_heard = clock_.Now();
    }
    if (type == MessageType::kHeartbeat) return UCS_OK;
    const std::span<const std::byte> header = framed.subspan(sizeof(prefix));
    if (data_bytes == 0) {
      sink_.OnMessage(from, type, header);
      return UCS_OK;
    }
    const Landing landing = sink_.OnIncoming(from, type, header, data_bytes);
    if (landing.slot.size() < data_bytes) return UCS_OK;
    if (from == PeerHandle{}) {
      sink_.OnPayload(from, landing.cookie,
                      absl::FailedPreconditionError("the sender is not connected"));
      return UCS_OK;
    }
    if ((param.recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0) {
      sink_.OnPayload(from, landing.cookie,
                      Place({static_cast<std::byte*>(data), data_bytes}, landing));
      return UCS_OK;
    }
    return ReceiveRendezvous(from, landing, data, data_bytes);
  }

  // A payload that came with its header, in memory of UCX.
  absl::Status Place(std::span<const std::byte> payload, const Landing& landing) {
    if (MemoryOf(landing.slot) == UCS_MEMORY_TYPE_CUDA)
      return options_.device->Copy(landing.slot.data(), payload.data(), payload.size());
    std::memcpy(landing.slot.data(), payload.data(), payload.size());
    return absl::OkStatus();
  }

  void UseRegion(std::span<const std::byte> payload, ucp_request_param_t& params) const {
    params.memh = regions_->Find(payload);
    if (params.memh != nullptr) params.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
  }

  ucs_memory_type_t MemoryOf(std::span<const std::byte> payload) const {
    const bool on_device =
        options_.device != nullptr && !payload.empty() && options_.device->Contains(payload.data());
    return on_device ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
  }

  ucs_status_t ReceiveRendezvous(PeerHandle from, const Landing& landing, void* descriptor,
                                 std::size_t bytes) {
    const ucs_memory_type_t memory = MemoryOf(landing.slot);
    auto receive = std::make_unique<ReceiveOp>(
        ReceiveOp{this, from, landing.cookie, memory == UCS_MEMORY_TYPE_CUDA});
    ucp_request_param_t params{};
    params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                          UCP_OP_ATTR_FIELD_MEMORY_TYPE | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    params.memory_type = memory;
    UseRegion(landing.slot, params);
    params.cb.recv_am = &UcxTransport::OnReceived;
    params.user_data = receive.get();
    // Counted before: a receive that fails at once ends in OnReceived, which deletes it, in there.
    UcxPeer* const peer = peers_.Find(from);
    const int on_device = receive->on_device ? 1 : 0;
    if (peer != nullptr) ++peer->receives;
    device_receives_ += on_device;
    ReceiveOp* const posted = receive.release();
    const ucs_status_ptr_t request =
        ucp_am_recv_data_nbx(worker_.get(), descriptor, landing.slot.data(), bytes, &params);
    if (!UCS_PTR_IS_ERR(request)) return UCS_INPROGRESS;
    receive.reset(posted);
    if (peer != nullptr) --peer->receives;
    device_receives_ -= on_device;
    sink_.OnPayload(from, landing.cookie, FromUcs(UCS_PTR_STATUS(request), "receive a chunk"));
    return UCS_OK;
  }

  static void OnReceived(void* request, ucs_status_t status, size_t, void* user_data) {
    const std::unique_ptr<ReceiveOp> receive(static_cast<ReceiveOp*>(user_data));
    ucp_request_free(request);
    if (UcxPeer* peer = receive->transport->peers_.Find(receive->peer)) --peer->receives;
    if (receive->on_device) --receive->transport->device_receives_;
    receive->transport->sink_.OnPayload(receive->peer, receive->cookie,
                                        FromUcs(status, "receive a chunk"));
  }

  const UcxOptions options_;
  MessageSink& sink_;
  const Clock& clock_;
  const ContextPtr context_;
  const std::shared_ptr<RegionIndex> regions_ = std::make_shared<RegionIndex>();
  WorkerPtr worker_;  // dies with the progress thread
  const UcxAddress address_;
  const std::vector<Path> paths_;
  const std::unique_ptr<WorkQueue> work_;
  std::array<Handler, 16> handlers_;
  std::atomic<std::uint64_t> next_handle_ = 1;

  // Of the progress thread.
  Progress progress_;
  bool stopping_ = false;
  bool pump_posted_ = false;
  int device_receives_ = 0;  // payloads that UCX copies to a GPU
  RateLimitedSends waiting_;
  PeerTable peers_;

  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<Transport>> CreateUcxTransport(const UcxOptions& options,
                                                              MessageSink* sink,
                                                              const Clock& clock) {
  std::map<std::string, std::string> settings = options.settings;
  if (!options.net_device.empty()) settings["NET_DEVICES"] = options.net_device;
  const auto found = settings.find("TLS");
  const std::string tls = found == settings.end() ? "all" : found->second;
  KVF_ASSIGN_OR_RETURN(std::vector<Path> paths,
                       OfferPaths(tls, options.device != nullptr, options.required));
  const bool device_memory = paths.front().memory == MemoryKind::kDevice;
  if (device_memory) {
    KVF_RETURN_IF_ERROR(options.device->Use());  // UCX looks for the GPU of the thread
    settings["TLS"] = WithCuda(tls);
  }
  KVF_ASSIGN_OR_RETURN(ContextPtr context, MakeContext(settings, device_memory));
  KVF_ASSIGN_OR_RETURN(WorkerPtr worker, MakeWorker(context.get()));
  KVF_ASSIGN_OR_RETURN(std::string worker_address, WorkerAddress(worker.get()));
  KVF_ASSIGN_OR_RETURN(UcxAddress address, LocalUcxAddress(device_memory ? options.device : nullptr,
                                                           std::move(worker_address)));
  int worker_fd = -1;
  KVF_RETURN_IF_ERROR(FromUcs(ucp_worker_get_efd(worker.get(), &worker_fd),
                              "read the UCX worker's event descriptor"));
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<WorkQueue> work, WorkQueue::Create(clock));
  auto transport = std::make_unique<UcxTransport>(options, sink, clock, std::move(context),
                                                  std::move(worker), std::move(address),
                                                  std::move(paths), worker_fd, std::move(work));
  KVF_RETURN_IF_ERROR(transport->RegisterHandlers());
  transport->StartThread();
  return transport;
}

}  // namespace kvferry::transport
