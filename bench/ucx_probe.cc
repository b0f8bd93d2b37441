#include "bench/ucx_probe.h"

#include <ucp/api/ucp.h>
#include <ucs/config/global_opts.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/chunk_stream.h"
#include "common/status_macros.h"

namespace kvferry::bench {
namespace {

constexpr unsigned kData = 1, kAnswer = 2;
constexpr absl::Duration kRoundLimit = absl::Seconds(60);

absl::Status Ucx(ucs_status_t status, const char* what) {
  if (status == UCS_OK) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("probe: ", what, ": ", ucs_status_string(status)));
}

// A context, a worker and one endpoint. What the process exit takes back is not given back here.
class Side {
 public:
  Side(const UcxProbeOptions& options, std::span<std::byte> memory)
      : options_(options), memory_(memory), landings_(options.window) {}

  absl::Status Start() {
    ucs_global_opts_set_value("MEMTYPE_CACHE", "n");
    ucp_config_t* config = nullptr;
    KVF_RETURN_IF_ERROR(Ucx(ucp_config_read(nullptr, nullptr, &config), "configuration"));
    for (const auto& [name, value] : options_.settings) {
      KVF_RETURN_IF_ERROR(
          Ucx(ucp_config_modify(config, name.c_str(), value.c_str()), name.c_str()));
    }
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES;
    params.features = UCP_FEATURE_AM;
    const ucs_status_t made = ucp_init(&params, config, &context_);
    ucp_config_release(config);
    KVF_RETURN_IF_ERROR(Ucx(made, "init"));
    ucp_worker_params_t worker_params{};
    worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
    worker_params.thread_mode = UCS_THREAD_MODE_SINGLE;
    KVF_RETURN_IF_ERROR(Ucx(ucp_worker_create(context_, &worker_params, &worker_), "worker"));
    ucp_mem_map_params_t map{};
    map.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
    map.address = memory_.data();
    map.length = memory_.size();
    KVF_RETURN_IF_ERROR(Ucx(ucp_mem_map(context_, &map, &region_), "map"));
    KVF_RETURN_IF_ERROR(Handle(kData, &Side::OnData));
    return Handle(kAnswer, &Side::OnAnswer);
  }

  absl::StatusOr<std::string> Address() {
    ucp_address_t* address = nullptr;
    std::size_t bytes = 0;
    KVF_RETURN_IF_ERROR(Ucx(ucp_worker_get_address(worker_, &address, &bytes), "address"));
    std::string text(reinterpret_cast<const char*>(address), bytes);
    ucp_worker_release_address(worker_, address);
    return text;
  }

  absl::Status Connect(const std::string& address) {
    if (address.empty()) return absl::InternalError("probe: the other process has ended");
    ucp_ep_params_t params{};
    params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
    params.address = reinterpret_cast<const ucp_address_t*>(address.data());
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    return Ucx(ucp_ep_create(worker_, &params, &endpoint_), "endpoint");
  }

  // Sends `messages`, at most `window` not answered.
  absl::Status SendAll(int messages) {
    const absl::Time end = absl::Now() + kRoundLimit;
    answered_ = 0;
    for (int sent = 0; answered_ < messages;) {
      while (sent < messages && sent - answered_ < options_.window) {
        const std::size_t slot = sent % options_.window;
        KVF_RETURN_IF_ERROR(
            Post(kData, memory_.subspan(slot * options_.message_bytes, options_.message_bytes)));
        ++sent;
      }
      if (ucp_worker_progress(worker_) == 0 && absl::Now() > end)
        return absl::DeadlineExceededError("probe: no answer");
    }
    return absl::OkStatus();
  }

  // Until `messages` have been received and their answers are on their way.
  absl::Status ReceiveAll(int messages) {
    const absl::Time end = absl::Now() + kRoundLimit;
    received_ = 0;
    while (received_ < messages || posted_ > 0) {
      if (ucp_worker_progress(worker_) == 0 && absl::Now() > end)
        return absl::DeadlineExceededError("probe: no message");
    }
    return failure_;
  }

 private:
  absl::Status Handle(unsigned id, ucp_am_recv_callback_t callback) {
    ucp_am_handler_param_t params{};
    params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                        UCP_AM_HANDLER_PARAM_FIELD_ARG;
    params.id = id;
    params.cb = callback;
    params.arg = this;
    return Ucx(ucp_worker_set_am_recv_handler(worker_, &params), "handler");
  }

  // As the transport does: UCX looks the memory up otherwise, and registers it again.
  void UseRegion(ucp_request_param_t& params) const {
    params.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
    params.memh = region_;
  }

  // A place in memory and what comes there.
  struct Landing {
    Side* side = nullptr;
    std::span<std::byte> payload;
    std::uint32_t check = 0;
  };

  std::uint32_t CheckOf(std::span<const std::byte> payload) const {
    return options_.check && !payload.empty() ? options_.check(payload) : 0;
  }

  absl::Status Post(unsigned id, std::span<const std::byte> payload) {
    const std::uint32_t check = CheckOf(payload);
    ucp_request_param_t params{};
    params.op_attr_mask =
        UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    params.flags = (payload.empty() ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV) |
                   UCP_AM_SEND_FLAG_COPY_HEADER;
    params.cb.send = [](void* request, ucs_status_t, void* self) {
      --static_cast<Side*>(self)->posted_;
      ucp_request_free(request);
    };
    params.user_data = this;
    if (!payload.empty()) UseRegion(params);
    const ucs_status_ptr_t request = ucp_am_send_nbx(endpoint_, id, &check, sizeof(check),
                                                     payload.data(), payload.size(), &params);
    if (UCS_PTR_IS_ERR(request)) return Ucx(UCS_PTR_STATUS(request), "send");
    if (request != nullptr) ++posted_;
    return absl::OkStatus();
  }

  static ucs_status_t OnData(void* arg, const void* header, size_t header_bytes, void* data,
                             size_t bytes, const ucp_am_recv_param_t*) {
    auto& self = *static_cast<Side*>(arg);
    const std::size_t slot = self.landed_++ % self.landings_.size();
    Landing& landing = self.landings_[slot];
    landing = {&self, self.memory_.subspan(slot * self.options_.message_bytes, bytes)};
    std::memcpy(&landing.check, header, std::min(header_bytes, sizeof(landing.check)));
    ucp_request_param_t params{};
    params.op_attr_mask =
        UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    params.cb.recv_am = &Side::OnReceived;
    params.user_data = &landing;
    self.UseRegion(params);
    const ucs_status_ptr_t request =
        ucp_am_recv_data_nbx(self.worker_, data, landing.payload.data(), bytes, &params);
    if (!UCS_PTR_IS_ERR(request)) return UCS_INPROGRESS;
    self.failure_ = Ucx(UCS_PTR_STATUS(request), "receive");
    return UCS_OK;
  }
  static void OnReceived(void* request, ucs_status_t status, size_t, void* arg) {
    const auto& landing = *static_cast<const Landing*>(arg);
    Side& self = *landing.side;
    ucp_request_free(request);
    self.failure_.Update(Ucx(status, "receive"));
    if (self.CheckOf(landing.payload) != landing.check)
      self.failure_.Update(absl::DataLossError("probe: a message has another checksum"));
    self.failure_.Update(self.Post(kAnswer, {}));
    ++self.received_;
  }
  static ucs_status_t OnAnswer(void* arg, const void*, size_t, void*, size_t,
                               const ucp_am_recv_param_t*) {
    ++static_cast<Side*>(arg)->answered_;
    return UCS_OK;
  }

  const UcxProbeOptions options_;
  const std::span<std::byte> memory_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  ucp_ep_h endpoint_ = nullptr;
  ucp_mem_h region_ = nullptr;
  absl::Status failure_;
  std::vector<Landing> landings_;  // one for each message of a window
  std::size_t landed_ = 0;
  int received_ = 0, answered_ = 0, posted_ = 0;
};

absl::Status Receive(int fd, const UcxProbeOptions& options, std::span<std::byte> memory) {
  Side side(options, memory);
  KVF_RETURN_IF_ERROR(side.Start());
  KVF_RETURN_IF_ERROR(side.Connect(ReadAddress(fd)));
  KVF_ASSIGN_OR_RETURN(const std::string address, side.Address());
  if (!WriteAddress(fd, address)) return absl::OkStatus();
  std::int32_t messages = 0;
  while (read(fd, &messages, sizeof(messages)) == sizeof(messages))
    KVF_RETURN_IF_ERROR(side.ReceiveAll(messages));
  return absl::OkStatus();
}

class Sender final : public UcxProbe {
 public:
  Sender(int fd, const UcxProbeOptions& options, std::span<std::byte> memory)
      : fd_(fd), bytes_(options.message_bytes), side_(options, memory) {}

  absl::Status Start() {
    KVF_RETURN_IF_ERROR(side_.Start());
    KVF_ASSIGN_OR_RETURN(const std::string address, side_.Address());
    if (!WriteAddress(fd_, address)) return absl::InternalError("probe: the receiver has ended");
    return side_.Connect(ReadAddress(fd_));
  }

  absl::StatusOr<double> Round(int messages) override {
    const std::int32_t count = messages;
    if (write(fd_, &count, sizeof(count)) != sizeof(count))
      return absl::InternalError("probe: the receiver has ended");
    const absl::Time begin = absl::Now();
    KVF_RETURN_IF_ERROR(side_.SendAll(messages));
    return static_cast<double>(bytes_) * messages / absl::ToDoubleSeconds(absl::Now() - begin) /
           1e9;
  }

 private:
  const int fd_;
  const std::size_t bytes_;
  Side side_;
};

}  // namespace

int ReceiveProbe(int fd, const UcxProbeOptions& options, std::span<std::byte> memory) {
  const absl::Status status = Receive(fd, options, memory);
  if (!status.ok()) std::cerr << status << '\n';
  return status.ok() ? 0 : 1;
}

absl::StatusOr<std::unique_ptr<UcxProbe>> UcxProbe::Create(int fd, const UcxProbeOptions& options,
                                                           std::span<std::byte> memory) {
  auto sender = std::make_unique<Sender>(fd, options, memory);
  KVF_RETURN_IF_ERROR(sender->Start());
  return sender;
}

}  // namespace kvferry::bench
