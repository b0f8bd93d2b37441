// Streams one answer from a KVFerry router. Nothing of KVFerry is needed but its .proto files.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>

#include "kvferry/v1/inference.grpc.pb.h"

namespace {

constexpr char kUsage[] = R"(Usage: generate --prompt TEXT [options]

  --prompt TEXT      what to ask
  --address H:P      the router's host:port [127.0.0.1:7300]
  --ca FILE          certificate of the authority that signed the router's
  --cert FILE        this client's certificate
  --key FILE         this client's private key
  --insecure         no TLS
  --max-tokens N     length of the answer at most [128]

  generate --insecure --prompt "Why is the sky blue?"
  generate --ca ca.crt --cert client.crt --key client.key --prompt "Why is the sky blue?"
)";

// In the router's certificate, whatever host it runs on.
constexpr char kRouterName[] = "kvferry-router";

[[noreturn]] void Fail(const std::string& why) {
  std::cerr << why << "\n\n" << kUsage;
  std::exit(2);
}

struct Flags {
  std::map<std::string, std::string> values = {{"--address", "127.0.0.1:7300"},
                                               {"--max-tokens", "128"},
                                               {"--prompt", ""},
                                               {"--ca", ""},
                                               {"--cert", ""},
                                               {"--key", ""}};
  bool insecure = false;
};

Flags ParseFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--help" || name == "-h") {
      std::cout << kUsage;
      std::exit(0);
    }
    if (name == "--insecure") {
      flags.insecure = true;
      continue;
    }
    const auto flag = flags.values.find(name);
    if (flag == flags.values.end()) Fail("unknown option " + name);
    if (++i == argc) Fail(name + " needs a value");
    flag->second = argv[i];
  }
  if (flags.values["--prompt"].empty()) Fail("--prompt is missing");
  return flags;
}

std::string ReadFile(const Flags& flags, const std::string& flag) {
  const std::string& path = flags.values.at(flag);
  if (path.empty()) Fail(flag + " is missing (or say --insecure)");
  std::ifstream file(path, std::ios::binary);
  if (!file) Fail(flag + ": cannot read " + path);
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

std::shared_ptr<grpc::Channel> Connect(const Flags& flags) {
  const std::string& address = flags.values.at("--address");
  if (flags.insecure) return grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  grpc::SslCredentialsOptions tls;
  tls.pem_root_certs = ReadFile(flags, "--ca");
  tls.pem_cert_chain = ReadFile(flags, "--cert");
  tls.pem_private_key = ReadFile(flags, "--key");
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(kRouterName);
  return grpc::CreateCustomChannel(address, grpc::SslCredentials(tls), arguments);
}

int MaxTokens(const Flags& flags) {
  const std::string& text = flags.values.at("--max-tokens");
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (end == text.c_str() || *end != '\0' || value < 1 || value > 1'000'000) {
    Fail("--max-tokens is " + text + "; allowed are 1 to 1000000");
  }
  return static_cast<int>(value);
}

grpc::Status Generate(const Flags& flags) {
  kvferry::v1::GenerateRequest request;
  request.set_max_tokens(MaxTokens(flags));
  kvferry::v1::ChatMessage& message = *request.mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content(flags.values.at("--prompt"));

  const auto stub = kvferry::v1::Inference::NewStub(Connect(flags));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(10));
  const auto stream = stub->Generate(&context, request);
  kvferry::v1::GenerateEvent event;
  while (stream->Read(&event)) {
    if (event.has_tokens()) std::cout << event.tokens().text() << std::flush;
    if (event.has_finished()) {
      const kvferry::v1::Finished& done = event.finished();
      std::cout << std::endl;
      std::cerr << "[" << done.prompt_tokens() << " + " << done.completion_tokens() << " tokens, "
                << done.handoff().payload_bytes() << " bytes handed off, "
                << done.handoff().raw16_bytes() << " in 16 bit]\n";
    }
  }
  return stream->Finish();
}

}  // namespace

int main(int argc, char** argv) {
  const grpc::Status status = Generate(ParseFlags(argc, argv));
  if (status.ok()) return 0;
  std::cerr << "error " << status.error_code() << ": " << status.error_message() << "\n";
  return 1;
}
