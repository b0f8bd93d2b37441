#include "common/config_loader.h"

#include <stdlib.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvferry/v1/config.pb.h"
#include "kvferry/v1/decode.pb.h"
#include "kvferry/v1/registry.pb.h"

namespace kvferry {
namespace {

using ::testing::HasSubstr;

absl::Status Apply(std::vector<std::string> settings, v1::DecodeConfig& config) {
  return ApplySettings(settings, &config);
}

TEST(ApplySettings, SetsEveryKindOfField) {
  v1::DecodeConfig config;
  const absl::Status status =
      Apply({"worker.name=d0", "worker.router_addresses+=a:1", "worker.router_addresses+=b:2",
             "pool_bytes=1048576", "tls.insecure=true", "transport.ucx.TLS=tcp",
             "transport.ucx.TLS=tcp,self", "transport.heartbeat_interval=1500ms",
             "transport.silence_limit=2m", "max_sequences=3"},
            config);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(config.worker().name(), "d0");
  EXPECT_EQ(config.worker().router_addresses_size(), 2);
  EXPECT_EQ(config.pool_bytes(), 1048576u);
  EXPECT_TRUE(config.tls().insecure());
  EXPECT_EQ(config.transport().ucx().at("TLS"), "tcp,self");
  EXPECT_EQ(config.transport().ucx().size(), 1u);
  EXPECT_EQ(config.transport().heartbeat_interval().seconds(), 1);
  EXPECT_EQ(config.transport().heartbeat_interval().nanos(), 500000000);
  EXPECT_EQ(config.transport().silence_limit().seconds(), 120);
  EXPECT_EQ(config.max_sequences(), 3u);
}

TEST(ApplySettings, ErrorsNamePathValueAndWhatIsAllowed) {
  const struct {
    const char* setting;
    const char* message;
  } kBad[] = {
      {"nonsense", "path=value"},
      {"no_field=1", "worker, model, transport"},
      {"worker.nme=x", "name, listen_address"},
      {"pool_bytes=many", "pool_bytes = 'many': want an integer"},
      {"pool_bytes=-1", "integer from 0"},
      {"max_sequences=5000000000", "4294967295"},
      {"tls.insecure=perhaps", "true or false"},
      {"transport.heartbeat_interval=fast", "a duration such as"},
      {"transport.heartbeat_interval=inf", "a duration such as"},
      {"worker=x", "one of its fields"},
      {"worker.router_addresses=a:1", "'+='"},
      {"pool_bytes+=1", "'='"},
      {"pool_bytes.x=1", "no field below"},
      {"transport.ucx=1", "a key after"},
  };
  for (const auto& bad : kBad) {
    v1::DecodeConfig config;
    const absl::Status status = Apply({bad.setting}, config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.setting;
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.message)) << bad.setting;
  }
}

TEST(ApplySettings, EnumsGoByName) {
  v1::Join join;
  const std::vector<std::string> good = {"role=WORKER_ROLE_DECODE"};
  ASSERT_TRUE(ApplySettings(good, &join).ok());
  EXPECT_EQ(join.role(), v1::WORKER_ROLE_DECODE);
  const std::vector<std::string> bad = {"role=decode"};
  EXPECT_THAT(std::string(ApplySettings(bad, &join).message()),
              HasSubstr("WORKER_ROLE_PREFILL, WORKER_ROLE_DECODE"));
}

TEST(ApplySettings, AListOfNumbersIsRefused) {
  v1::RunRequest request;
  const std::vector<std::string> settings = {"tokens+=1"};
  EXPECT_THAT(std::string(ApplySettings(settings, &request).message()),
              HasSubstr("in the config file only"));
}

TEST(LoadConfigFile, AFolderIsNotAnEmptyConfiguration) {
  v1::DecodeConfig config;
  const absl::Status status = LoadConfigFile("/tmp", &config);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("/tmp"));
}

TEST(LoadConfigFile, NamesFileLineAndField) {
  char name[] = "/tmp/kvferry-config.XXXXXX";
  const int fd = mkstemp(name);
  ASSERT_GE(fd, 0);
  close(fd);
  std::ofstream(name) << "codec: \"kivi-2\"\npool_byte: 5\n";
  v1::DecodeConfig config;
  const absl::Status status = LoadConfigFile(name, &config);
  EXPECT_THAT(std::string(status.message()), HasSubstr("line 2"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("pool_byte"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  std::ofstream(name) << "codec: \"kivi-2\"\n";
  config.Clear();
  ASSERT_TRUE(LoadConfigFile(name, &config).ok());
  EXPECT_EQ(config.codec(), "kivi-2");
  EXPECT_THAT(PrintConfig(config), HasSubstr("kivi-2"));
  unlink(name);
  EXPECT_EQ(LoadConfigFile(name, &config).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace kvferry
