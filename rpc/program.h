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
  std::function<absl::StatusOr<std::unique_ptr<ServingNode>>()> start;
};

// The exit code of main: 0, 1 for what the config, files or ports refuse, CLI11's for bad flags.
// Prints "listening address=HOST:PORT" once the node serves. SIGTERM or one SIGINT drains and
// stops, a second one stops at once. Thread: main, before any other is started.
int RunProgram(const Program& program, int argc, char** argv);

}  // namespace kvferry::rpc
