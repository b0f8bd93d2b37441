#include "transport/ucx/handles.h"

#include <ucs/config/global_opts.h>

#include <array>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/string_view.h"

namespace kvferry::transport {
namespace {

using ConfigPtr = std::unique_ptr<ucp_config_t, UcxDelete<ucp_config_release>>;

// Older ones crash on an unknown Active Message and lack settings that are needed.
absl::Status CheckVersion() {
  unsigned major = 0, minor = 0, release = 0;
  ucp_get_version(&major, &minor, &release);
  if (major > 1 || (major == 1 && minor >= 17)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("UCX ", major, ".", minor, ".", release, " is loaded; 1.17 or newer is needed"));
}

absl::StatusOr<ConfigPtr> MakeConfig(const std::map<std::string, std::string>& settings) {
  ucp_config_t* raw = nullptr;
  if (const ucs_status_t status = ucp_config_read(nullptr, nullptr, &raw); status != UCS_OK)
    return FromUcs(status, "read UCX's configuration");
  ConfigPtr config(raw);
  for (const auto& [name, value] : settings) {
    const ucs_status_t status = ucp_config_modify(config.get(), name.c_str(), value.c_str());
    if (status != UCS_OK) {
      return absl::InvalidArgumentError(
          absl::StrCat("transport.ucx.", name, " = '", value,
                       "' is refused by UCX: ", ucs_status_string(status)));
    }
  }
  return config;
}

// A UCX without CUDA takes a device pointer for a host pointer, and crashes.
absl::Status CheckCuda(ucp_context_h context) {
  ucp_context_attr_t attributes{};
  attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
  KVF_RETURN_IF_ERROR(FromUcs(ucp_context_query(context, &attributes), "ask UCX for its memories"));
  if ((attributes.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) != 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "UCX has no CUDA: its modules libuct_cuda and libucm_cuda, or what these load (the folder "
      "libucx_cu13.libs beside libucx, the driver's libcuda.so.1), are missing; "
      "transport.memory: \"host\" does without");
}

}  // namespace

absl::Status FromUcs(ucs_status_t status, std::string_view what) {
  if (status == UCS_OK) return absl::OkStatus();
  const std::string message = absl::StrCat(ToAbsl(what), ": ", ucs_status_string(status));
  switch (status) {
    case UCS_ERR_CANCELED:
      return absl::CancelledError(message);
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
      return absl::InvalidArgumentError(message);
    case UCS_ERR_NO_MEMORY:
      return absl::ResourceExhaustedError(message);
    case UCS_ERR_UNSUPPORTED:
    case UCS_ERR_NOT_IMPLEMENTED:
      return absl::FailedPreconditionError(message);
    case UCS_ERR_UNREACHABLE:
    case UCS_ERR_CONNECTION_RESET:
    case UCS_ERR_NOT_CONNECTED:
    case UCS_ERR_REJECTED:
    case UCS_ERR_ENDPOINT_TIMEOUT:
    case UCS_ERR_TIMED_OUT:
    case UCS_ERR_IO_ERROR:
      return absl::UnavailableError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<ContextPtr> MakeContext(const std::map<std::string, std::string>& settings,
                                       bool device_memory) {
  KVF_RETURN_IF_ERROR(CheckVersion());
  // UCX prints what it also returns; we log it once ourselves.
  ucs_global_opts_set_value("LOG_LEVEL", "fatal");
  // It learns of allocations through hooks, which miss those of a statically linked CUDA runtime.
  ucs_global_opts_set_value("MEMTYPE_CACHE", "n");
  KVF_ASSIGN_OR_RETURN(const ConfigPtr config, MakeConfig(settings));
  ucp_params_t params{};
  params.field_mask =
      UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 1;  // memory is registered by any thread
  params.name = "kvferry";
  ucp_context_h raw = nullptr;
  const ucs_status_t status = ucp_init(&params, config.get(), &raw);
  if (status != UCS_OK)
    return FromUcs(status, "start UCX (are the transports in transport.ucx.TLS available?)");
  ContextPtr context(raw);
  if (device_memory) KVF_RETURN_IF_ERROR(CheckCuda(context.get()));
  return context;
}

absl::StatusOr<WorkerPtr> MakeWorker(ucp_context_h context) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_EVENTS;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  params.events = UCP_WAKEUP_RX | UCP_WAKEUP_TX | UCP_WAKEUP_AMO | UCP_WAKEUP_RMA;
  ucp_worker_h worker = nullptr;
  const ucs_status_t status = ucp_worker_create(context, &params, &worker);
  if (status != UCS_OK) return FromUcs(status, "make a UCX worker");
  return WorkerPtr(worker);
}

absl::StatusOr<std::string> WorkerAddress(ucp_worker_h worker) {
  ucp_address_t* address = nullptr;
  std::size_t bytes = 0;
  const ucs_status_t status = ucp_worker_get_address(worker, &address, &bytes);
  if (status != UCS_OK) return FromUcs(status, "read the UCX worker's address");
  std::string text(reinterpret_cast<const char*>(address), bytes);
  ucp_worker_release_address(worker, address);
  return text;
}

absl::StatusOr<ucp_ep_h> OpenEndpoint(ucp_worker_h worker, const std::string& address,
                                      std::string_view name, ucp_err_handler_cb_t on_error,
                                      void* arg) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = on_error;
  params.err_handler.arg = arg;
  ucp_ep_h endpoint = nullptr;
  KVF_RETURN_IF_ERROR(FromUcs(ucp_ep_create(worker, &params, &endpoint),
                              absl::StrCat("connect to ", ToAbsl(name))));
  return endpoint;
}

absl::StatusOr<std::vector<std::string>> EndpointLanes(ucp_ep_h endpoint) {
  std::array<ucp_transport_entry_t, 64> entries{};
  ucp_ep_attr_t attributes{};
  attributes.field_mask = UCP_EP_ATTR_FIELD_TRANSPORTS;
  attributes.transports = {.entries = entries.data(),
                           .num_entries = static_cast<unsigned>(entries.size()),
                           .entry_size = sizeof(entries[0])};
  KVF_RETURN_IF_ERROR(FromUcs(ucp_ep_query(endpoint, &attributes), "ask for a connection's lanes"));
  std::vector<std::string> lanes;
  for (unsigned i = 0; i < attributes.transports.num_entries; ++i)
    lanes.push_back(absl::StrCat(entries[i].transport_name, "/", entries[i].device_name));
  return lanes;
}

}  // namespace kvferry::transport
