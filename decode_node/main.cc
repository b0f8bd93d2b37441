// kvferry-decode: adopts compressed caches and generates on them.
#include "common/restart.h"
#include "common/status_macros.h"
#include "decode_node/config.h"
#include "decode_node/wiring.h"
#include "rpc/program.h"

int main(int argc, char** argv) {
  using namespace kvferry;
  KeepOpenMpFromSpinning(argv);
  v1::DecodeConfig config;
  return rpc::RunProgram(
      {.name = "kvferry-decode",
       .description = "KVFerry decode worker: adopts compressed KV caches and generates on them",
       .examples = R"(  kvferry-decode --config decode.textproto
  kvferry-decode --set model.path=SmolLM2-135M-Instruct.Q4_1.gguf \
      --set worker.router_addresses+=127.0.0.1:7300 --set tls.insecure=true
  kvferry-decode --config decode.textproto --set codec=kivi-2-g64 --print_config)",
       .config = &config,
       .complete = [&]() -> absl::StatusOr<rpc::Program::Logging> {
         KVF_RETURN_IF_ERROR(decode::CompleteConfig(config));
         return rpc::Program::Logging{config.worker().name(), config.log().level()};
       },
       .start =
           [&](const rpc::Program::OnLost& on_lost) {
             return decode::DecodeNode::Create(config, {.on_lost = on_lost});
           }},
      argc, argv);
}
