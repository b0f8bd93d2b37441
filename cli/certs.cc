#include <iostream>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/connection.h"
#include "cli/output.h"
#include "rpc/certificates.h"

namespace kvferry::cli {

void AddCerts(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "certs", "Make certificates for one machine: an authority and one per role");
  auto folder = std::make_shared<std::string>(DefaultCertsFolder());
  command->add_option("--out", *folder, "folder to write; valid ones that are there are kept")
      ->capture_default_str();
  command->footer("Example:\n  kvferry certs --out /etc/kvferry/certs");
  command->callback([folder] {
    if (const absl::Status made = rpc::MakeCertificates(*folder); !made.ok())
      throw CLI::RuntimeError(Fail(made));
    std::cout << "certificates of router, prefill, decode and client are in " << *folder << '\n';
  });
}

}  // namespace kvferry::cli
