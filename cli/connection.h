#pragma once

#include <grpcpp/channel.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rpc/role.h"

namespace kvferry::cli {

// How a command reaches a router or worker: the flags that all of them share.
struct ConnectionFlags {
  std::string address = "127.0.0.1:7300";
  std::string certs;  // folder with ca.crt, client.crt and client.key
  bool insecure = false;
  double timeout_s = 600;

  void AddTo(CLI::App& command);
  // kInvalidArgument says which flag is missing; kNotFound names a missing file.
  absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(rpc::Role peer) const;
};

// Where `kvferry serve` keeps its certificates, so that the other commands find them without a
// flag.
std::string DefaultCertsFolder();

}  // namespace kvferry::cli
