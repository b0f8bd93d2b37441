#include "rpc/role.h"

namespace kvferry::rpc {

std::string_view RoleName(Role role) {
  switch (role) {
    case Role::kRouter:
      return "kvferry-router";
    case Role::kPrefill:
      return "kvferry-prefill";
    case Role::kDecode:
      return "kvferry-decode";
    case Role::kClient:
      return "kvferry-client";
  }
  return "kvferry-unknown";
}

}  // namespace kvferry::rpc
