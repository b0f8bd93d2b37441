#include "rpc/certificates.h"

#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "kvferry/v1/config.pb.h"

namespace kvferry::rpc {
namespace {

template <auto Free>
struct OpensslFree {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};
using KeyPtr = std::unique_ptr<EVP_PKEY, OpensslFree<EVP_PKEY_free>>;
using CertificatePtr = std::unique_ptr<X509, OpensslFree<X509_free>>;
using BioPtr = std::unique_ptr<BIO, OpensslFree<BIO_free_all>>;
using ExtensionPtr = std::unique_ptr<X509_EXTENSION, OpensslFree<X509_EXTENSION_free>>;

constexpr long kValidSeconds = 3650L * 24 * 3600;
constexpr long kRenewSeconds = 24 * 3600;

absl::Status OpensslError(std::string_view what) {
  std::array<char, 256> text{};
  ERR_error_string_n(ERR_get_error(), text.data(), text.size());
  return absl::InternalError(absl::StrCat(ToAbsl(what), ": ", text.data()));
}

absl::Status WriteFile(const std::string& path, std::string_view contents, mode_t mode) {
  const std::string fresh = path + ".new";
  const int fd = open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write '", fresh, "'"));
  // A file that an interrupted run has left keeps its old mode otherwise.
  const bool mode_set = fchmod(fd, mode) == 0;
  const ssize_t written = write(fd, contents.data(), contents.size());
  const int error = errno;
  close(fd);
  if (!mode_set || written != static_cast<ssize_t>(contents.size())) {
    return absl::ErrnoToStatus(error, absl::StrCat("cannot write '", fresh, "'"));
  }
  std::error_code renamed;
  std::filesystem::rename(fresh, path, renamed);
  if (renamed)
    return absl::InternalError(absl::StrCat("cannot rename '", fresh, "': ", renamed.message()));
  return absl::OkStatus();
}

std::string BioText(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return std::string(data, static_cast<std::size_t>(size));
}

absl::StatusOr<std::string> KeyPem(EVP_PKEY* key) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return OpensslError("writing a private key");
  }
  return BioText(bio.get());
}

absl::StatusOr<std::string> CertificatePem(X509* certificate) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509(bio.get(), certificate) != 1) return OpensslError("writing a certificate");
  return BioText(bio.get());
}

absl::Status AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  ExtensionPtr extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (extension == nullptr || X509_add_ext(certificate, extension.get(), -1) != 1) {
    return OpensslError(absl::StrCat("certificate extension '", value, "'"));
  }
  return absl::OkStatus();
}

// A certificate for `name`, signed by `issuer_key`; self-signed when `issuer` is null.
absl::StatusOr<CertificatePtr> MakeCertificate(const std::string& name, EVP_PKEY* key, X509* issuer,
                                               EVP_PKEY* issuer_key) {
  CertificatePtr certificate(X509_new());
  std::uint64_t serial = 0;
  if (RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof(serial)) != 1)
    return OpensslError("random serial number");
  X509_set_version(certificate.get(), X509_VERSION_3);
  ASN1_INTEGER_set_uint64(X509_get_serialNumber(certificate.get()), serial >> 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -300);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), kValidSeconds);
  X509_set_pubkey(certificate.get(), key);
  X509_NAME* subject = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  X509* signer = issuer == nullptr ? certificate.get() : issuer;
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(signer));
  if (issuer == nullptr) {
    KVF_RETURN_IF_ERROR(
        AddExtension(certificate.get(), signer, NID_basic_constraints, "critical,CA:TRUE"));
    KVF_RETURN_IF_ERROR(
        AddExtension(certificate.get(), signer, NID_key_usage, "critical,keyCertSign,cRLSign"));
  } else {
    KVF_RETURN_IF_ERROR(
        AddExtension(certificate.get(), signer, NID_basic_constraints, "critical,CA:FALSE"));
    KVF_RETURN_IF_ERROR(
        AddExtension(certificate.get(), signer, NID_key_usage, "critical,digitalSignature"));
    KVF_RETURN_IF_ERROR(
        AddExtension(certificate.get(), signer, NID_ext_key_usage, "serverAuth,clientAuth"));
    KVF_RETURN_IF_ERROR(AddExtension(certificate.get(), signer, NID_subject_alt_name,
                                     absl::StrCat("DNS:", name, ",DNS:localhost,IP:127.0.0.1")));
  }
  if (X509_sign(certificate.get(), issuer_key, EVP_sha256()) == 0)
    return OpensslError("signing a certificate");
  return certificate;
}

absl::StatusOr<KeyPtr> MakeKey() {
  KeyPtr key(EVP_EC_gen("P-256"));
  if (key == nullptr) return OpensslError("making a P-256 key");
  return key;
}

// Of the pair `stem`.crt and `stem`.key.
bool StillValid(const std::string& stem) {
  if (access((stem + ".key").c_str(), R_OK) != 0) return false;
  BioPtr bio(BIO_new_file((stem + ".crt").c_str(), "r"));
  if (bio == nullptr) return false;
  CertificatePtr certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  if (certificate == nullptr) return false;
  time_t soon = time(nullptr) + kRenewSeconds;
  return X509_cmp_time(X509_get0_notAfter(certificate.get()), &soon) > 0;
}

absl::Status WritePair(const std::string& stem, X509* certificate, EVP_PKEY* key) {
  KVF_ASSIGN_OR_RETURN(const std::string key_pem, KeyPem(key));
  KVF_ASSIGN_OR_RETURN(const std::string certificate_pem, CertificatePem(certificate));
  KVF_RETURN_IF_ERROR(WriteFile(stem + ".key", key_pem, S_IRUSR | S_IWUSR));
  return WriteFile(stem + ".crt", certificate_pem, S_IRUSR | S_IWUSR | S_IRGRP | S_IROTH);
}

constexpr std::array kRoles = {Role::kRouter, Role::kPrefill, Role::kDecode, Role::kClient};

std::string Stem(const std::string& folder, Role role) {
  return absl::StrCat(folder, "/", absl::StripPrefix(ToAbsl(RoleName(role)), "kvferry-"));
}

}  // namespace

absl::Status MakeCertificates(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error)
    return absl::InternalError(
        absl::StrCat("cannot make the folder '", folder, "': ", error.message()));
  bool all_valid = StillValid(folder + "/ca");
  for (const Role role : kRoles) all_valid = all_valid && StillValid(Stem(folder, role));
  if (all_valid) return absl::OkStatus();

  // All or nothing: a new authority invalidates what the old one has signed.
  KVF_ASSIGN_OR_RETURN(const KeyPtr ca_key, MakeKey());
  KVF_ASSIGN_OR_RETURN(
      const CertificatePtr ca,
      MakeCertificate("kvferry local authority", ca_key.get(), nullptr, ca_key.get()));
  for (const Role role : kRoles) {
    KVF_ASSIGN_OR_RETURN(const KeyPtr key, MakeKey());
    KVF_ASSIGN_OR_RETURN(
        const CertificatePtr certificate,
        MakeCertificate(std::string(RoleName(role)), key.get(), ca.get(), ca_key.get()));
    KVF_RETURN_IF_ERROR(WritePair(Stem(folder, role), certificate.get(), key.get()));
  }
  return WritePair(folder + "/ca", ca.get(), ca_key.get());
}

void SetCertificateFiles(const std::string& folder, Role role, v1::TlsConfig& tls) {
  tls.set_ca_file(folder + "/ca.crt");
  tls.set_cert_file(Stem(folder, role) + ".crt");
  tls.set_key_file(Stem(folder, role) + ".key");
}

}  // namespace kvferry::rpc
