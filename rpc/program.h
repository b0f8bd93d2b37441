#pragma once

#include <google/protobuf/message.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "rpc/serving_node.h"

namespace kvferry::rpc {

// A program that serves one node until it is told to stop: its flags, its configuration, its
// signals.
struct Program {
  std::string name;         // "kvferry-decode"
  std::string description;  // one line of --help
  std::string examples;     // the lines of --help after "Examples:"
  google::protobuf::Message* config = nullptr;
  // Fills in and checks `config`; returns what to call this process in the log, and the least level
  // that it logs.
  struct Logging {
    std::string name;
    std::string level;
  };
  std::function<absl::StatusOr<Logging>()> complete;
  // A node of the completed config, serving.
  //   on_lost: to be called, from any thread, when the node can serve no more although nobody has
  //   told it to stop; copies outlive the node.
  using OnLost = std::function<void(const absl::Status&)>;
  std::function<absl::StatusOr<std::unique_ptr<ServingNode>>(const OnLost& on_lost)> start;
};

// The exit code of main: 0, 1 for what the config, files or ports refuse, CLI11's for bad flags.
// Prints "listening address=HOST:PORT" once the node serves. SIGTERM or one SIGINT drains and
// stops, a second one stops at once. A node that is lost is stopped at once, what it held ends with
// kUnavailable, and the process exits with 1, so that whoever keeps it running starts another.
// Thread: main, before any other is started.
int RunProgram(const Program& program, int argc, char** argv);

}  // namespace kvferry::rpc
