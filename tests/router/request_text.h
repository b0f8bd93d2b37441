#pragma once

#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "router/request.h"
#include "rpc/status.h"

namespace kvferry::router {

// A worker's answer that it has no room, with the hint to come back after `after`.
inline absl::Status Full(absl::Duration after) {
  absl::Status status = absl::ResourceExhaustedError("full");
  rpc::SetRetryHint(status, after);
  return status;
}

// One letter for each action, tokens by their id: "R" reserve, "O" open, "C" close, "Q" enqueue,
// "F" finish, "X" fail, "B" refused, "7" emit.
inline std::string Text(const Request::Actions& actions) {
  struct Letter {
    std::string operator()(const Request::Enqueue&) { return "Q"; }
    std::string operator()(const Request::Reserve&) { return "R"; }
    std::string operator()(const Request::OpenCalls&) { return "O"; }
    std::string operator()(const Request::CloseCalls&) { return "C"; }
    std::string operator()(const Request::Emit& emit) { return absl::StrCat(emit.id); }
    std::string operator()(const Request::Refused&) { return "B"; }
    std::string operator()(const Request::FinishRequest& finish) {
      return finish.end == Request::End::kStop     ? "Fstop"
             : finish.end == Request::End::kLength ? "Flength"
                                                   : "Fcancelled";
    }
    std::string operator()(const Request::FailRequest& fail) {
      return absl::StrCat("X", absl::StatusCodeToString(fail.status.code()));
    }
  };
  std::string text;
  for (const Request::Action& action : actions)
    absl::StrAppend(&text, text.empty() ? "" : " ", std::visit(Letter(), action));
  return text;
}

}  // namespace kvferry::router
