#include "cli/connection.h"

#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kvferry/v1/config.pb.h"
#include "rpc/certificates.h"
#include "rpc/credentials.h"

namespace kvferry::cli {

std::string DefaultCertsFolder() { return ".kvferry/certs"; }

void ConnectionFlags::AddTo(CLI::App& command) {
  command.add_option("--address", address, "host:port to talk to")->capture_default_str();
  command.add_option(
      "--certs", certs,
      "folder with ca.crt, client.crt and client.key [" + DefaultCertsFolder() + "]");
  command.add_flag("--insecure", insecure, "no TLS; the server must run without it too");
  command.add_option("--timeout", timeout_s, "seconds until the call is given up")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectionFlags::Connect(rpc::Role peer) const {
  v1::TlsConfig tls;
  tls.set_insecure(insecure);
  if (!insecure) {
    const std::string folder = certs.empty() ? DefaultCertsFolder() : certs;
    if (!std::filesystem::exists(folder)) {
      return absl::NotFoundError(
          absl::StrCat("no certificates in '", folder,
                       "': pass --certs FOLDER (`kvferry serve` prints its own), make some with "
                       "`kvferry certs`, or say --insecure"));
    }
    rpc::SetCertificateFiles(folder, rpc::Role::kClient, tls);
  }
  KVF_ASSIGN_OR_RETURN(const rpc::Credentials credentials, rpc::Credentials::Load(tls));
  return credentials.Connect(address, peer);
}

}  // namespace kvferry::cli
