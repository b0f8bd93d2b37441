#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "kvferry/v1/config.pb.h"
#include "kvferry/v1/inference.grpc.pb.h"
#include "rpc/certificates.h"
#include "rpc/credentials.h"

namespace kvferry {
namespace {

using ::testing::HasSubstr;

// Answers with the prompt, one character a message; refuses "too long".
class EchoService : public v1::Inference::Service {
 public:
  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateEvent>* writer) override {
    const std::string& prompt = request->chat().messages(0).content();
    if (prompt == "too long") {
      return {grpc::StatusCode::INVALID_ARGUMENT, "chat.messages[0] is too long"};
    }
    v1::GenerateEvent event;
    event.mutable_started()->set_request_id("r");
    writer->Write(event);
    for (const char c : prompt.substr(0, static_cast<std::size_t>(request->max_tokens()))) {
      event.mutable_tokens()->set_text(std::string(1, c));
      writer->Write(event);
    }
    v1::Finished& finished = *event.mutable_finished();
    finished.set_prompt_tokens(3);
    finished.set_completion_tokens(static_cast<std::uint32_t>(request->max_tokens()));
    finished.mutable_handoff()->set_payload_bytes(1234);
    finished.mutable_handoff()->set_raw16_bytes(5678);
    writer->Write(event);
    return grpc::Status::OK;
  }
};

struct Outcome {
  int exit_code;
  std::string output;  // stdout, then stderr where it comes
};

Outcome RunShell(const std::string& command) {
  std::FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return {-1, "cannot run " + command};
  std::string output;
  char buffer[4096];
  while (const std::size_t n = std::fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, n);
  const int status = ::pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
}

class ExamplesTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::string(GetParam()).find("python") != std::string::npos &&
        !std::filesystem::exists(KVFERRY_TEST_PYTHON)) {
      GTEST_SKIP() << "no " << KVFERRY_TEST_PYTHON << ": run scripts/deps.sh with the test tools";
    }
    std::string pattern = std::filesystem::temp_directory_path() / "kvferry_examples_XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  void TearDown() override {
    if (server_) server_->Shutdown();
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }

  void StartServer(bool insecure) {
    v1::TlsConfig tls;
    tls.set_insecure(insecure);
    if (!insecure) {
      ASSERT_TRUE(rpc::MakeCertificates(folder_).ok());
      rpc::SetCertificateFiles(folder_, rpc::Role::kRouter, tls);
    }
    const absl::StatusOr<rpc::Credentials> credentials = rpc::Credentials::Load(tls);
    ASSERT_TRUE(credentials.ok()) << credentials.status();
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", credentials->ForServer(), &port_);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }

  Outcome Call(const std::string& flags) {
    return RunShell(std::string(GetParam()) + " --address 127.0.0.1:" + std::to_string(port_) +
                    " " + flags);
  }

  std::string folder_;

 private:
  EchoService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST_P(ExamplesTest, StreamsAnAnswerWithTls) {
  StartServer(/*insecure=*/false);
  v1::TlsConfig client;
  rpc::SetCertificateFiles(folder_, rpc::Role::kClient, client);
  const Outcome outcome =
      Call("--ca " + client.ca_file() + " --cert " + client.cert_file() + " --key " +
           client.key_file() + " --prompt 'Hello world' --max-tokens 5");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("Hello\n"));
  EXPECT_THAT(outcome.output, HasSubstr("[3 + 5 tokens, 1234 bytes handed off, 5678 in 16 bit]"));
}

TEST_P(ExamplesTest, ErrorsAreShown) {
  StartServer(/*insecure=*/true);
  const Outcome refused = Call("--insecure --prompt 'too long'");
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.output, HasSubstr("chat.messages[0] is too long"));
  const Outcome no_certificates = Call("--prompt hi");
  EXPECT_NE(no_certificates.exit_code, 0);
  EXPECT_THAT(no_certificates.output, HasSubstr("--ca"));
}

TEST_P(ExamplesTest, Help) {
  const Outcome help = RunShell(std::string(GetParam()) + " --help");
  EXPECT_EQ(help.exit_code, 0) << help.output;
  for (const char* flag :
       {"--address", "--ca", "--cert", "--key", "--insecure", "--prompt", "--max-tokens"}) {
    EXPECT_THAT(help.output, HasSubstr(flag));
  }
}

INSTANTIATE_TEST_SUITE_P(Languages, ExamplesTest,
                         ::testing::Values(KVFERRY_EXAMPLE_CPP, KVFERRY_EXAMPLE_PYTHON),
                         [](const auto& info) { return info.index == 0 ? "Cpp" : "Python"; });

}  // namespace
}  // namespace kvferry
