#include "kvcodec/codebooks.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/coding.h"
#include "common/crc32c.h"
#include "common/status_macros.h"
#include "kvcodec/codec.h"
#include "kvcodec/field_hash.h"
#include "kvcodec/format.h"
#include "kvcodec/half.h"

namespace kvferry::codec {
namespace {

constexpr std::array<Coupling, 5> kCouplings = {{{2, 8}, {4, 8}, {8, 8}, {8, 10}, {2, 4}}};

constexpr std::uint32_t kMagic = 0x4243564b;  // "KVCB"
constexpr std::uint32_t kVersion = 1;
// magic, version, layers, kv_heads, head_dim, channels, bits, bytes of the record
constexpr std::size_t kHeaderBytes = 8 * sizeof(std::uint32_t);
constexpr std::size_t kCheckBytes = sizeof(std::uint32_t);
constexpr int kMostLayers = 4096, kMostHeads = 4096;
constexpr std::size_t kMostValues = std::size_t{1} << 31;

absl::Status CheckShape(const CodebookShape& shape) {
  const auto bad = [&](const absl::AlphaNum& what) {
    return absl::InvalidArgumentError(absl::StrCat("codebooks: ", what));
  };
  if (!IsCoupling(shape.coupling)) {
    return bad(absl::StrCat(shape.coupling.channels, " channels with ", shape.coupling.bits,
                            " bits, must be 2c8b, 4c8b, 8c8b, 8c10b or 2c4b"));
  }
  if (!format::IsHeadDim(shape.head_dim)) {
    return bad(absl::StrCat("head_dim is ", shape.head_dim, ", must be 64, 96, 128 or 256"));
  }
  if (shape.layers < 1 || shape.layers > kMostLayers || shape.kv_heads < 1 ||
      shape.kv_heads > kMostHeads || shape.values() > kMostValues) {
    return bad(absl::StrCat(shape.layers, " layers of ", shape.kv_heads,
                            " heads, must be 1 to 4096 of each and fewer than 2^31 values"));
  }
  return absl::OkStatus();
}

std::uint64_t HashOf(const CodebookShape& shape, std::span<const float> frequencies,
                     std::span<const std::uint16_t> centroids) {
  FieldHash hash;
  for (const int field : {static_cast<int>(kVersion), shape.layers, shape.kv_heads, shape.head_dim,
                          shape.coupling.channels, shape.coupling.bits}) {
    hash.Add(static_cast<std::uint32_t>(field));
  }
  for (const float frequency : frequencies) hash.Add(std::bit_cast<std::uint32_t>(frequency));
  for (std::size_t i = 0; i < centroids.size(); i += 2) {  // their number is even
    hash.Add(centroids[i] | std::uint32_t{centroids[i + 1]} << 16);
  }
  return hash.value();
}

}  // namespace

bool IsCoupling(const Coupling& coupling) {
  for (const Coupling& known : kCouplings) {
    if (coupling == known) return true;
  }
  return false;
}

KeyRotation::KeyRotation(std::span<const float> frequencies)
    : frequencies_(frequencies.begin(), frequencies.end()),
      cos_(std::size_t{kBlockTokens} * frequencies.size()),
      sin_(cos_.size()) {
  for (int token = 0; token < kBlockTokens; ++token) {
    Angles(token, cos_.data() + token * frequencies.size(),
           sin_.data() + token * frequencies.size());
  }
}

void KeyRotation::Angles(std::int64_t position, float* cos, float* sin) const {
  for (std::size_t i = 0; i < frequencies_.size(); ++i) {
    const double angle = static_cast<double>(position) * static_cast<double>(frequencies_[i]);
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
}

absl::StatusOr<std::shared_ptr<const Codebooks>> Codebooks::Create(
    const CodebookShape& shape, std::span<const float> frequencies,
    std::span<const std::uint16_t> centroids, std::string record) {
  KVF_RETURN_IF_ERROR(CheckShape(shape));
  if (frequencies.size() != static_cast<std::size_t>(shape.head_dim / 2) ||
      centroids.size() != shape.values()) {
    return absl::InvalidArgumentError(
        absl::StrCat("codebooks: ", frequencies.size(), " frequencies and ", centroids.size(),
                     " centroid values, must be ", shape.head_dim / 2, " and ", shape.values()));
  }
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    if (!std::isfinite(frequencies[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("codebooks: frequency ", i, " is NaN or infinite"));
    }
  }
  if (!nlohmann::json::parse(record, nullptr, /*allow_exceptions=*/false).is_object()) {
    return absl::InvalidArgumentError("codebooks: the record is no JSON object");
  }
  std::shared_ptr<Codebooks> books(new Codebooks(shape, frequencies, std::move(record)));
  books->centroids_.assign(centroids.begin(), centroids.end());
  books->by_channel_.resize(centroids.size());
  const int channels = shape.coupling.channels, count = shape.coupling.centroids();
  for (std::size_t i = 0; i < centroids.size(); ++i) {
    if (!HalfIsFinite(centroids[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("codebooks: centroid value ", i, " is NaN or infinite"));
    }
    const std::size_t group = i / channels / count, code = i / channels % count;
    books->by_channel_[(group * channels + i % channels) * count + code] =
        FloatFromHalf(centroids[i]);
  }
  books->hash_ = HashOf(shape, frequencies, centroids);
  return books;
}

absl::Status Codebooks::FitsModel(const CacheGeometry& geometry) const {
  if (CacheGeometry{shape_.layers, shape_.kv_heads, shape_.head_dim} == geometry) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("codebooks are for a model of ", shape_.layers, " layers of ", shape_.kv_heads,
                   " KV heads of ", shape_.head_dim, " channels, this one has ", geometry.layers,
                   " of ", geometry.kv_heads, " of ", geometry.head_dim,
                   ": make them with `kvferry calibrate codebooks`"));
}

SideCodebook Codebooks::Side(int layer, int kv_head, bool is_v) const {
  const std::size_t side =
      (static_cast<std::size_t>(layer) * shape_.kv_heads + kv_head) * 2 + (is_v ? 1 : 0);
  const std::size_t begin = side * shape_.side_values();
  return {centroids_.data() + begin, by_channel_.data() + begin};
}

absl::Status Codebooks::Save(const std::string& path) const {
  std::vector<std::byte> bytes(kHeaderBytes);
  const std::array<std::uint32_t, 8> header = {kMagic,
                                               kVersion,
                                               static_cast<std::uint32_t>(shape_.layers),
                                               static_cast<std::uint32_t>(shape_.kv_heads),
                                               static_cast<std::uint32_t>(shape_.head_dim),
                                               static_cast<std::uint32_t>(shape_.coupling.channels),
                                               static_cast<std::uint32_t>(shape_.coupling.bits),
                                               static_cast<std::uint32_t>(record_.size())};
  for (std::size_t i = 0; i < header.size(); ++i) {
    StoreLittle(std::span(bytes), i * sizeof header[i], header[i]);
  }
  const auto append = [&](std::span<const std::byte> part) {
    bytes.insert(bytes.end(), part.begin(), part.end());
  };
  append(std::as_bytes(rotation_.frequencies()));
  append(std::as_bytes(centroids()));
  append(std::as_bytes(std::span(record_)));
  const std::uint32_t check = Crc32c(bytes);
  append(std::as_bytes(std::span(&check, 1)));

  const std::string part = absl::StrCat(path, ".", getpid(), ".part");
  std::ofstream file(part, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(part, path, error);
  if (!file || error) {
    const std::string why = error ? error.message() : std::string(std::strerror(errno));
    std::filesystem::remove(part, error);
    return absl::UnavailableError(absl::StrCat("cannot write the codebooks '", path, "': ", why));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Codebooks>> Codebooks::Open(const std::string& path) {
  const auto named = [&](absl::StatusCode code, const absl::AlphaNum& what) {
    return absl::Status(code, absl::StrCat("codebooks '", path, "': ", what));
  };
  std::ifstream file(path, std::ios::binary);
  if (!file) return named(absl::StatusCode::kNotFound, "cannot be read");
  const std::vector<char> text((std::istreambuf_iterator<char>(file)), {});
  const std::span<const std::byte> bytes = std::as_bytes(std::span(text));
  const auto field = [&](std::size_t i) {
    return LoadLittle<std::uint32_t>(bytes, i * sizeof(std::uint32_t));
  };
  if (bytes.size() < kHeaderBytes + kCheckBytes || field(0) != kMagic) {
    return named(absl::StatusCode::kInvalidArgument, "is no file of `kvferry calibrate codebooks`");
  }
  if (field(1) != kVersion) {
    return named(absl::StatusCode::kInvalidArgument,
                 absl::StrCat("version is ", field(1), ", this program reads ", kVersion));
  }
  for (std::size_t i = 2; i < 7; ++i) {
    if (field(i) > 1u << 16) {
      return named(absl::StatusCode::kDataLoss, "the header is damaged");
    }
  }
  const CodebookShape shape = {static_cast<int>(field(2)),
                               static_cast<int>(field(3)),
                               static_cast<int>(field(4)),
                               {static_cast<int>(field(5)), static_cast<int>(field(6))}};
  if (const absl::Status status = CheckShape(shape); !status.ok()) {
    return named(status.code(), status.message());
  }
  const std::size_t frequency_bytes = sizeof(float) * (shape.head_dim / 2);
  const std::size_t centroid_bytes = sizeof(std::uint16_t) * shape.values();
  const std::size_t expected =
      kHeaderBytes + frequency_bytes + centroid_bytes + field(7) + kCheckBytes;
  if (bytes.size() != expected) {
    return named(absl::StatusCode::kDataLoss,
                 absl::StrCat("has ", bytes.size(), " bytes, must be ", expected));
  }
  if (Crc32c(bytes.first(expected - kCheckBytes)) !=
      LoadLittle<std::uint32_t>(bytes, expected - kCheckBytes)) {
    return named(absl::StatusCode::kDataLoss, "the check fails: the file is damaged");
  }
  std::vector<float> frequencies(shape.head_dim / 2);
  std::vector<std::uint16_t> centroids(shape.values());
  std::memcpy(frequencies.data(), bytes.data() + kHeaderBytes, frequency_bytes);
  std::memcpy(centroids.data(), bytes.data() + kHeaderBytes + frequency_bytes, centroid_bytes);
  absl::StatusOr<std::shared_ptr<const Codebooks>> books =
      Create(shape, frequencies, centroids,
             std::string(text.data() + kHeaderBytes + frequency_bytes + centroid_bytes, field(7)));
  if (!books.ok()) return named(books.status().code(), books.status().message());
  return books;
}

}  // namespace kvferry::codec
