#pragma once

#include <string>

#include "absl/status/status.h"
#include "rpc/role.h"

namespace kvferry::v1 {
class TlsConfig;
}

namespace kvferry::rpc {

// Makes a certificate authority and one certificate per role in `folder`: ca.crt, ca.key, ROLE.crt,
// ROLE.key (P-256, PEM, keys readable by the owner only). Common name and DNS name are the role's;
// localhost and 127.0.0.1 are added. What is there and still valid for a day is kept. For one
// machine and for tests; a cluster brings certificates of its own issuer.
absl::Status MakeCertificates(const std::string& folder);

// Points `tls` at the files that MakeCertificates writes for `role`.
void SetCertificateFiles(const std::string& folder, Role role, v1::TlsConfig& tls);

}  // namespace kvferry::rpc
