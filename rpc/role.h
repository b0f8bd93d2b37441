#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace grpc {
class ServerContextBase;
}

// gRPC plumbing that router, workers and command line share.
namespace kvferry::rpc {

// Who is on the other end of a connection, by its certificate.
enum class Role { kRouter, kPrefill, kDecode, kClient };

// "kvferry-router": the common name and the DNS name of the role's certificates.
std::string_view RoleName(Role role);

}  // namespace kvferry::rpc
