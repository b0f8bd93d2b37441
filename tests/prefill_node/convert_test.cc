#include "prefill_node/convert.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "prefill_node/config.h"
#include "rpc/convert.h"

namespace kvferry::prefill {
namespace {

const PromptLimits kLimits{.vocabulary = 100, .max_context_tokens = 8};

v1::PrefillRequest ValidRequest() {
  v1::PrefillRequest request;
  request.set_request_id("r1");
  v1::Grant& grant = *request.mutable_grant();
  grant.set_transfer_id(std::string(16, 'x'));
  grant.set_epoch(1);
  grant.set_decode_incarnation(9);
  grant.set_decode_name("decode-0");
  grant.set_decode_control_address("127.0.0.1:1");
  grant.set_codec("kivi-4-g64");
  grant.set_codec_hash(codec::FindCodec("kivi-4-g64")->Hash());
  grant.set_credits(4);
  grant.set_slot_bytes(1 << 20);
  grant.mutable_lease()->set_seconds(30);
  for (int token : {1, 2, 3}) request.add_tokens(token);
  request.mutable_sampling()->set_seed(5);
  request.mutable_sampling()->set_temperature(0.5f);
  return request;
}

TEST(Convert, ReadsAWholeRequest) {
  const auto job = ToJobRequest(ValidRequest(), kLimits);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->request_id, "r1");
  EXPECT_EQ(job->transfer_id.ToBytes(), std::string(16, 'x'));
  EXPECT_EQ(job->epoch, Epoch{1});
  EXPECT_EQ(job->decode, Incarnation{9});
  EXPECT_EQ(job->credits, 4u);
  EXPECT_EQ(job->slot_bytes, 1u << 20);
  EXPECT_EQ(job->lease, absl::Seconds(30));
  EXPECT_EQ(job->codec.name, "kivi-4-g64");
  EXPECT_EQ(job->tokens, (std::vector<std::int32_t>{1, 2, 3}));
  EXPECT_EQ(job->sampling.seed, 5u);
  EXPECT_EQ(job->sampling.temperature, 0.5f);
  EXPECT_EQ(job->sampling.top_p, 1.0f);
}

struct BadRequest {
  const char* field;
  std::function<void(v1::PrefillRequest&)> spoil;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};

TEST(Convert, EveryBadFieldIsNamed) {
  const BadRequest cases[] = {
      {"grant: missing", [](auto& r) { r.clear_grant(); }},
      {"grant.transfer_id", [](auto& r) { r.mutable_grant()->set_transfer_id("short"); }},
      {"grant.epoch", [](auto& r) { r.mutable_grant()->clear_epoch(); }},
      {"grant.decode_incarnation", [](auto& r) { r.mutable_grant()->clear_decode_incarnation(); }},
      {"grant.decode_control_address",
       [](auto& r) { r.mutable_grant()->clear_decode_control_address(); }},
      {"grant.codec", [](auto& r) { r.mutable_grant()->set_codec("zip"); }},
      {"grant.codec_hash", [](auto& r) { r.mutable_grant()->set_codec_hash(1); },
       absl::StatusCode::kFailedPrecondition},
      {"grant.credits", [](auto& r) { r.mutable_grant()->clear_credits(); }},
      {"grant.slot_bytes", [](auto& r) { r.mutable_grant()->clear_slot_bytes(); }},
      {"grant.lease", [](auto& r) { r.mutable_grant()->mutable_lease()->set_nanos(-1); }},
      {"tokens: empty", [](auto& r) { r.clear_tokens(); }},
      {"tokens: 9 tokens",
       [](auto& r) {
         while (r.tokens_size() < 9) r.add_tokens(1);
       }},
      {"tokens[1]", [](auto& r) { r.set_tokens(1, 100); }},
      {"tokens[2]", [](auto& r) { r.set_tokens(2, -1); }},
      {"penalty_from", [](auto& r) { r.set_penalty_from(4); }},
      {"sampling.seed", [](auto& r) { r.mutable_sampling()->clear_seed(); }},
      {"sampling.temperature", [](auto& r) { r.mutable_sampling()->set_temperature(-1); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(0); }},
  };
  for (const BadRequest& bad : cases) {
    v1::PrefillRequest request = ValidRequest();
    bad.spoil(request);
    const absl::Status status = ToJobRequest(request, kLimits).status();
    EXPECT_EQ(status.code(), bad.code) << bad.field << ": " << status;
    EXPECT_EQ(status.message().find(bad.field), 0) << bad.field << ": " << status;
  }
}

TEST(Convert, StatsAndLoad) {
  HandoffSummary summary;
  summary.prompt_tokens = 3;
  summary.exposed_time = absl::Milliseconds(5);
  v1::HandoffStats begun;
  FillStats(summary, begun);
  EXPECT_FALSE(begun.adopted());
  EXPECT_FALSE(begun.has_exposed_time());
  summary.adopted = true;
  v1::HandoffStats stats;
  FillStats(summary, stats);
  EXPECT_EQ(stats.prompt_tokens(), 3u);
  EXPECT_TRUE(stats.adopted());
  EXPECT_EQ(stats.exposed_time().nanos(), 5'000'000);
  v1::Load load;
  FillLoad({.queued_requests = 2, .steps = 9, .stall = absl::Seconds(1), .draining = true}, load);
  EXPECT_EQ(load.engine_steps(), 9u);
  EXPECT_EQ(load.engine_stall().seconds(), 1);
  EXPECT_TRUE(load.draining());
}

TEST(Config, DefaultsAreFilledIn) {
  v1::PrefillConfig config;
  config.mutable_model()->set_path("models/tiny.gguf");
  ASSERT_TRUE(CompleteConfig(config).ok());
  EXPECT_EQ(config.model().name(), "tiny");
  EXPECT_EQ(config.model().compute(), "fp32");
  EXPECT_EQ(config.worker().listen_address(), "127.0.0.1:0");
  EXPECT_EQ(config.chunk_tokens(), 512u);
  EXPECT_EQ(config.send_slots(), 16u);
  EXPECT_EQ(config.send_slot_bytes(), 4u << 20);
  EXPECT_EQ(config.transport().ucx().at("TLS"), "tcp");
  EXPECT_EQ(config.transport().memory(), "host");
  v1::PrefillConfig folder;
  folder.mutable_model()->set_path("models/Qwen2.5-0.5B/");
  ASSERT_TRUE(CompleteConfig(folder).ok());
  EXPECT_EQ(folder.model().name(), "Qwen2.5-0.5B");
}

TEST(Config, EveryBadFieldIsNamed) {
  struct Bad {
    const char* path;
    std::function<void(v1::PrefillConfig&)> spoil;
  };
  const Bad cases[] = {
      {"model.path", [](auto& c) { c.mutable_model()->clear_path(); }},
      {"model.device", [](auto& c) { c.mutable_model()->set_device("gpu"); }},
      {"model.compute", [](auto& c) { c.mutable_model()->set_compute("fp8"); }},
      {"model.threads", [](auto& c) { c.mutable_model()->set_threads(99999); }},
      {"chunk_tokens", [](auto& c) { c.set_chunk_tokens(100); }},
      {"chunk_tokens", [](auto& c) { c.set_chunk_tokens(0); }},
      {"send_slots", [](auto& c) { c.set_send_slots(1); }},
      {"send_slot_bytes", [](auto& c) { c.set_send_slot_bytes(5000); }},
      {"max_queued_requests", [](auto& c) { c.set_max_queued_requests(0); }},
      {"transport.memory", [](auto& c) { c.mutable_transport()->set_memory("gpu"); }},
      {"transport.silence_limit",
       [](auto& c) {
         *c.mutable_transport()->mutable_silence_limit() = rpc::ToProto(absl::Milliseconds(300));
       }},
      {"transport.heartbeat_interval",
       [](auto& c) { c.mutable_transport()->mutable_heartbeat_interval()->set_seconds(-1); }},
      {"worker.router_addresses[0]", [](auto& c) { c.mutable_worker()->add_router_addresses(""); }},
  };
  for (const Bad& bad : cases) {
    v1::PrefillConfig config;
    config.mutable_model()->set_path("m.gguf");
    bad.spoil(config);
    const absl::Status status = CompleteConfig(config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.path;
    EXPECT_NE(status.message().find(bad.path), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace kvferry::prefill
