#include "tests/fakes/fake_worker.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <condition_variable>
#include <utility>

#include "common/ids.h"
#include "rpc/status.h"

namespace kvferry::fakes {
namespace {

// The pace of asking again whether a synchronous call was cancelled.
constexpr std::chrono::milliseconds kPoll(2);

void PollPause() {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable().wait_for(lock, kPoll);
}

}  // namespace

std::int32_t TokenAt(std::uint32_t position) {
  return 1000 + static_cast<std::int32_t>(position * 37 % 20000);
}

void FakeDataPlane::Commit(const std::string& transfer_id, std::int32_t first_token) {
  const std::lock_guard lock(mutex_);
  committed_[transfer_id] = first_token;
}

std::optional<std::int32_t> FakeDataPlane::FirstToken(const std::string& transfer_id) {
  const std::lock_guard lock(mutex_);
  const auto found = committed_.find(transfer_id);
  if (found == committed_.end()) return std::nullopt;
  return found->second;
}

FakeWorker::FakeWorker(FakeWorkerOptions options, v1::WorkerRole role)
    : options_(std::move(options)), role_(role), incarnation_(RandomId64()) {
  load_.set_free_pages(1000);
  load_.set_total_pages(1000);
}

FakeWorker::~FakeWorker() = default;

void FakeWorker::Start(grpc::Service& service) {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);  // as rpc::Server does
  builder.RegisterService(&service);
  server_ = builder.BuildAndStart();
  address_ = "127.0.0.1:";
  address_ += std::to_string(port);
  v1::Join join;
  join.set_role(role_);
  join.set_name(options_.name);
  join.set_incarnation(incarnation_);
  join.set_control_address(address_);
  *join.mutable_fingerprint() = options_.fingerprint;
  for (const std::string& codec : options_.codecs) join.add_codecs(codec);
  join.set_max_context_tokens(options_.max_context_tokens);
  registry_ = std::thread([this, join] {
    const auto stub = v1::Registry::NewStub(
        grpc::CreateChannel(options_.router_address, grpc::InsecureChannelCredentials()));
    while (!crashed_) {
      Attach(*stub, join);
      PollPause();
    }
  });
}

// One stream, from join to end.
void FakeWorker::Attach(v1::Registry::Stub& stub, const v1::Join& join) {
  grpc::ClientContext context;
  const auto stream = stub.Attach(&context);
  v1::WorkerReport report;
  *report.mutable_join() = join;
  stream->Write(report);
  std::atomic<bool> ended = false;
  std::thread reader([&] {
    v1::RouterCommand command;
    while (stream->Read(&command)) Obey(command);
    ended = true;
  });
  while (!ended && !crashed_) {
    if (!frozen_) {
      {
        const std::lock_guard lock(mutex_);
        *report.mutable_load() = load_;
      }
      stream->Write(report);
    }
    PollPause();
  }
  if (crashed_) context.TryCancel();
  reader.join();
  const grpc::Status status = stream->Finish();
  const std::lock_guard lock(mutex_);
  if (!crashed_) refused_ = rpc::FromGrpc(status);
}

void FakeWorker::Obey(const v1::RouterCommand& command) {
  const std::lock_guard lock(mutex_);
  if (command.has_drain()) drain_told_ = true;
  if (command.has_release()) releases_.push_back(command.release().transfer_id());
  if (command.has_peers())
    peers_.assign(command.peers().decode().begin(), command.peers().decode().end());
}

void FakeWorker::Freeze() { frozen_ = true; }
void FakeWorker::Thaw() { frozen_ = false; }

void FakeWorker::Crash() {
  crashed_ = true;
  if (registry_.joinable()) registry_.join();
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
}

std::vector<v1::Peer> FakeWorker::peers() const {
  const std::lock_guard lock(mutex_);
  return peers_;
}

std::vector<std::string> FakeWorker::releases_told() const {
  const std::lock_guard lock(mutex_);
  return releases_;
}

absl::Status FakeWorker::refused() const {
  const std::lock_guard lock(mutex_);
  return refused_;
}

void FakeWorker::SetLoad(const v1::Load& load) {
  const std::lock_guard lock(mutex_);
  load_ = load;
}

bool FakeWorker::Await(const grpc::ServerContext& context, const std::function<bool()>& done) {
  while (!crashed_) {
    if (!frozen_) {
      if (context.IsCancelled()) return false;
      if (done()) return true;
    }
    PollPause();
  }
  return false;
}

FakeDecode::FakeDecode(FakeWorkerOptions options)
    : FakeWorker(std::move(options), v1::WORKER_ROLE_DECODE) {
  Start(*this);
}

std::size_t FakeDecode::held() const {
  const std::lock_guard lock(mutex_);
  return held_.size();
}

std::vector<v1::RunRequest> FakeDecode::run_requests() const {
  const std::lock_guard lock(mutex_);
  return run_requests_;
}

grpc::Status FakeDecode::Reserve(grpc::ServerContext* context, const v1::ReserveRequest* request,
                                 v1::Grant* grant) {
  ++reservations_;
  if (!Await(*context, [] { return true; })) return grpc::Status::CANCELLED;
  if (on_reserve) {
    if (const grpc::Status status = on_reserve(); !status.ok()) return status;
  }
  const std::string id = TransferId::Random().ToBytes();
  grant->set_transfer_id(id);
  grant->set_epoch(request->epoch());
  grant->set_decode_incarnation(incarnation());
  grant->set_decode_name(options_.name);
  grant->set_decode_control_address(address());
  grant->set_codec(options_.codecs.front());
  grant->set_credits(4);
  grant->set_slot_bytes(1 << 20);
  const std::lock_guard lock(mutex_);
  held_.insert(id);
  return grpc::Status::OK;
}

grpc::Status FakeDecode::Release(grpc::ServerContext*, const v1::ReleaseRequest* request,
                                 v1::ReleaseResponse*) {
  const std::lock_guard lock(mutex_);
  held_.erase(request->transfer_id());
  return grpc::Status::OK;
}

grpc::Status FakeDecode::Run(grpc::ServerContext* context, const v1::RunRequest* request,
                             grpc::ServerWriter<v1::TokenEvent>* writer) {
  ++runs_;
  {
    const std::lock_guard lock(mutex_);
    run_requests_.push_back(*request);
  }
  const grpc::Status status = Generate(*context, *request, *writer);
  const std::lock_guard lock(mutex_);
  held_.erase(request->transfer_id());
  return status;
}

grpc::Status FakeDecode::Generate(grpc::ServerContext& context, const v1::RunRequest& request,
                                  grpc::ServerWriter<v1::TokenEvent>& writer) {
  std::optional<std::int32_t> first;
  if (!Await(context, [&] {
        first = options_.data_plane->FirstToken(request.transfer_id());
        return first.has_value();
      })) {
    return grpc::Status::CANCELLED;
  }
  v1::TokenEvent event;
  event.mutable_adopted()->set_first_token(*first);
  v1::HandoffStats& handoff = *event.mutable_adopted()->mutable_handoff();
  handoff.set_prompt_tokens(request.tokens_size());
  handoff.set_payload_bytes(kPayloadBytes);
  handoff.set_adopted(true);
  writer.Write(event);
  for (int i = 1; i < static_cast<int>(request.max_new_tokens()); ++i) {
    if (break_after >= 0 && i > break_after) return break_status;
    if (!Await(context, [&] { return i <= token_limit; })) return grpc::Status::CANCELLED;
    int expected = i;
    if (skip_token.compare_exchange_strong(expected, -1)) continue;
    const auto position = static_cast<std::uint32_t>(request.tokens_size() + i);
    event.mutable_token()->set_position(position);
    event.mutable_token()->set_id(TokenAt(position));
    writer.Write(event);
    if (repeat_tokens) writer.Write(event);
  }
  event.mutable_finished()->set_stop_token(false);
  writer.Write(event);
  return grpc::Status::OK;
}

FakePrefill::FakePrefill(FakeWorkerOptions options)
    : FakeWorker(std::move(options), v1::WORKER_ROLE_PREFILL) {
  Start(*this);
}

grpc::Status FakePrefill::Run(grpc::ServerContext* context, const v1::PrefillRequest* request,
                              grpc::ServerWriter<v1::PrefillEvent>* writer) {
  ++runs_;
  ++running_;
  const grpc::Status status = Prefill(*context, *request, *writer);
  --running_;
  return status;
}

grpc::Status FakePrefill::Prefill(grpc::ServerContext& context, const v1::PrefillRequest& request,
                                  grpc::ServerWriter<v1::PrefillEvent>& writer) {
  if (on_run) {
    if (const grpc::Status status = on_run(); !status.ok()) return status;
  }
  if (!Await(context, [&] { return !hang_before_first_token; })) return grpc::Status::CANCELLED;
  const std::int32_t first = TokenAt(static_cast<std::uint32_t>(request.tokens_size()));
  v1::PrefillEvent event;
  event.mutable_first_token()->set_id(first);
  v1::HandoffStats& so_far = *event.mutable_first_token()->mutable_handoff();
  so_far.set_prompt_tokens(request.tokens_size());
  so_far.set_payload_bytes(kFirstTokenBytes);
  so_far.set_transport("fake");
  writer.Write(event);
  if (!Await(context, [&] { return !hang_before_commit; })) return grpc::Status::CANCELLED;
  options_.data_plane->Commit(request.grant().transfer_id(), first);
  v1::HandoffStats& handoff = *event.mutable_committed()->mutable_handoff();
  handoff.set_prompt_tokens(request.tokens_size());
  handoff.set_payload_bytes(kPayloadBytes);
  handoff.set_chunks(1);
  handoff.set_adopted(true);
  writer.Write(event);
  return grpc::Status::OK;
}

}  // namespace kvferry::fakes
