// kvferry-prefill: runs prompts, ships their compressed cache to decode workers.
#include "common/restart.h"
#include "common/status_macros.h"
#include "prefill_node/config.h"
#include "prefill_node/wiring.h"
#include "rpc/program.h"

int main(int argc, char** argv) {
  using namespace kvferry;
  KeepOpenMpFromSpinning(argv);
  v1::PrefillConfig config;
  return rpc::RunProgram(
      {.name = "kvferry-prefill",
       .description = "KVFerry prefill worker: runs prompts and ships their compressed KV cache",
       .examples = R"(  kvferry-prefill --config prefill.textproto
  kvferry-prefill --set model.path=SmolLM2-135M-Instruct.Q4_1.gguf \
      --set worker.router_addresses+=127.0.0.1:7300 --set tls.insecure=true
  kvferry-prefill --config prefill.textproto --set chunk_tokens=256 --print_config)",
       .config = &config,
       .complete = [&]() -> absl::StatusOr<rpc::Program::Logging> {
         KVF_RETURN_IF_ERROR(prefill::CompleteConfig(config));
         return rpc::Program::Logging{config.worker().name(), config.log().level()};
       },
       .start =
           [&](const rpc::Program::OnLost& on_lost) {
             return prefill::PrefillNode::Create(config, {.on_lost = on_lost});
           }},
      argc, argv);
}
