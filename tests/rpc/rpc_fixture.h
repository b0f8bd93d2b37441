#pragma once

#include <stdlib.h>

#include <array>
#include <filesystem>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "kvferry/v1/config.pb.h"
#include "rpc/certificates.h"
#include "rpc/credentials.h"
#include "rpc/server.h"

namespace kvferry::rpc {

// Certificates of every role in a folder of its own. Thread: one at a time.
class RpcTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    char folder[] = "/tmp/kvferry-rpc.XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
    ASSERT_TRUE(MakeCertificates(folder_).ok());
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(folder_); }

  static Credentials Of(Role role) {
    v1::TlsConfig tls;
    SetCertificateFiles(folder_, role, tls);
    return Credentials::Load(tls).value();
  }
  static std::unique_ptr<Server> Serve(grpc::Service& service, Role role,
                                       const std::string& address = "127.0.0.1:0") {
    const std::array<grpc::Service*, 1> services = {&service};
    auto server = Server::Start({.listen_address = address}, Of(role), services);
    EXPECT_TRUE(server.ok()) << server.status();
    return *std::move(server);
  }
  static inline std::string folder_;
};

}  // namespace kvferry::rpc
