#include "rpc/certificates.h"

#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "gtest/gtest.h"
#include "kvferry/v1/config.pb.h"
#include "rpc/credentials.h"

namespace kvferry::rpc {
namespace {

class CertificatesTest : public ::testing::Test {
 protected:
  CertificatesTest() {
    char folder[] = "/tmp/kvferry-certs.XXXXXX";
    EXPECT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
  }
  ~CertificatesTest() override { std::filesystem::remove_all(folder_); }

  // Contents by file name.
  std::map<std::string, std::string> Files() const {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      std::ifstream file(entry.path(), std::ios::binary);
      files[entry.path().filename()] = std::string(std::istreambuf_iterator<char>(file), {});
    }
    return files;
  }

  std::string folder_;
};

TEST_F(CertificatesTest, EveryRoleHasAPairAndOnlyTheOwnerReadsTheKeys) {
  // What an interrupted run has left behind, with a mode that a key must not have.
  std::ofstream(folder_ + "/router.key.new") << "old";
  ASSERT_EQ(chmod((folder_ + "/router.key.new").c_str(), 0644), 0);
  ASSERT_TRUE(MakeCertificates(folder_).ok());
  EXPECT_EQ(Files().size(), 10u);
  for (const char* name : {"ca", "router", "prefill", "decode", "client"}) {
    struct stat key {};
    ASSERT_EQ(stat((folder_ + "/" + name + ".key").c_str(), &key), 0) << name;
    EXPECT_EQ(key.st_mode & 0777, 0600u) << name;
  }
  for (const Role role : {Role::kRouter, Role::kPrefill, Role::kDecode, Role::kClient}) {
    v1::TlsConfig tls;
    SetCertificateFiles(folder_, role, tls);
    EXPECT_TRUE(Credentials::Load(tls).ok()) << RoleName(role);
  }
}

TEST_F(CertificatesTest, ASecondRunKeepsWhatIsValid) {
  ASSERT_TRUE(MakeCertificates(folder_).ok());
  const auto before = Files();
  ASSERT_TRUE(MakeCertificates(folder_).ok());
  EXPECT_EQ(Files(), before);
}

TEST_F(CertificatesTest, AMissingFileRenewsAll) {
  for (const char* gone : {"/decode.key", "/decode.crt", "/ca.crt"}) {
    ASSERT_TRUE(MakeCertificates(folder_).ok());
    const auto before = Files();
    std::filesystem::remove(folder_ + gone);
    ASSERT_TRUE(MakeCertificates(folder_).ok());
    const auto after = Files();
    EXPECT_EQ(after.size(), before.size()) << gone;
    EXPECT_NE(after.at("ca.crt"), before.at("ca.crt")) << gone;
    EXPECT_NE(after.at("router.crt"), before.at("router.crt")) << gone;
  }
}

TEST_F(CertificatesTest, AFolderThatCannotBeMadeIsNamed) {
  std::ofstream(folder_ + "/file") << "not a folder";
  const absl::Status status = MakeCertificates(folder_ + "/file/below");
  EXPECT_FALSE(status.ok());
  EXPECT_NE(std::string(status.message()).find(folder_ + "/file/below"), std::string::npos);
}

}  // namespace
}  // namespace kvferry::rpc
