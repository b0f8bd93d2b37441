#include "common/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvferry {
namespace {

using ::testing::HasSubstr;

TEST(Metrics, TheSameNameAndLabelsGiveTheSameCounter) {
  const auto metrics = Metrics::Create();
  metrics->GetCounter("kvferry_test_events_total", "Events.", {{"kind", "a"}}).Add(2);
  metrics->GetCounter("kvferry_test_events_total", "Events.", {{"kind", "a"}}).Add();
  metrics->GetCounter("kvferry_test_events_total", "Events.", {{"kind", "b"}}).Add(5);
  const auto values = metrics->CounterValues();
  EXPECT_EQ(values.at("kvferry_test_events_total{kind=a}"), 3u);
  EXPECT_EQ(values.at("kvferry_test_events_total{kind=b}"), 5u);
}

// A listening socket on a free port of loopback.
class Listener {
 public:
  Listener() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(fd_, 1), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~Listener() { Close(); }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  int port() const { return port_; }

 private:
  int fd_;
  int port_ = 0;
};

std::string Get(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_in address{.sin_family = AF_INET,
                            .sin_port = htons(static_cast<std::uint16_t>(port)),
                            .sin_addr = {htonl(INADDR_LOOPBACK)}};
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
  EXPECT_EQ(send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t got; (got = recv(fd, buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, got);
  close(fd);
  return answer;
}

TEST(Metrics, APortInUseIsUnavailable) {
  const Listener taken;
  const std::string address = absl::StrCat("127.0.0.1:", taken.port());
  const absl::Status status = Metrics::Create()->Serve(address);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(address));
  EXPECT_EQ(Metrics::Create()->Serve("127.0.0.1:notaport").code(), absl::StatusCode::kUnavailable);
}

TEST(Metrics, AreServedAsPrometheusText) {
  const auto metrics = Metrics::Create();
  metrics->GetCounter("kvferry_test_events_total", "What happened.", {{"kind", "a"}}).Add(3);
  metrics->GetGauge("kvferry_test_rows", "Rows.").Set(2.5);
  metrics->GetHistogram("kvferry_test_seconds", "Times.", {0.1, 1}).Observe(0.5);
  Listener free_port;
  free_port.Close();
  ASSERT_TRUE(metrics->Serve(absl::StrCat("127.0.0.1:", free_port.port())).ok());
  const std::string page = Get(free_port.port(), "/metrics");
  EXPECT_THAT(page, HasSubstr("# HELP kvferry_test_events_total What happened."));
  EXPECT_THAT(page, HasSubstr("kvferry_test_events_total{kind=\"a\"} 3"));
  EXPECT_THAT(page, HasSubstr("kvferry_test_rows 2.5"));
  EXPECT_THAT(page, HasSubstr("kvferry_test_seconds_bucket{le=\"0.1\"} 0"));
  EXPECT_THAT(page, HasSubstr("kvferry_test_seconds_bucket{le=\"1\"} 1"));
}

}  // namespace
}  // namespace kvferry
