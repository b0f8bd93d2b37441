// kvferry-router: the front door; finds workers for every request and keeps it going when one is
// lost.
#include "common/status_macros.h"
#include "router/config.h"
#include "router/wiring.h"
#include "rpc/program.h"

int main(int argc, char** argv) {
  using namespace kvferry;
  v1::RouterConfig config;
  return rpc::RunProgram(
      {.name = "kvferry-router",
       .description =
           "KVFerry router: takes requests, finds workers for them, runs them again when a worker "
           "is lost",
       .examples = R"(  kvferry-router --config router.textproto
  kvferry-router --set model.path=SmolLM2-135M-Instruct.Q4_1.gguf --set tls.insecure=true
  kvferry-router --config router.textproto --set silence_limit=1s --print_config)",
       .config = &config,
       .complete = [&]() -> absl::StatusOr<rpc::Program::Logging> {
         KVF_RETURN_IF_ERROR(router::CompleteConfig(config));
         return rpc::Program::Logging{config.name(), config.log().level()};
       },
       .start = [&](const rpc::Program::OnLost&) { return router::RouterNode::Create(config); }},
      argc, argv);
}
