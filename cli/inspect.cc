#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "common/crc32c.h"
#include "common/status_macros.h"
#include "kvcodec/codec.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "kvcodec/open_codec.h"
#include "transport/wire.h"

namespace kvferry::cli {
namespace {

constexpr std::size_t kBlockAlignment = 128;

struct InspectFlags {
  OutputFormat output = OutputFormat::kTable;
  std::string file;
  std::string codec;
  int head_dim = 0;
  int layer = 0;
  int kv_heads = 1;
};

// File bytes at an address that a backend takes.
class AlignedBytes {
 public:
  explicit AlignedBytes(std::span<const std::byte> bytes)
      : size_(bytes.size()),
        data_(static_cast<std::byte*>(
            ::operator new (std::max<std::size_t>(size_, 1), std::align_val_t{kBlockAlignment}))) {
    std::copy(bytes.begin(), bytes.end(), data_);
  }
  ~AlignedBytes() { ::operator delete (data_, std::align_val_t{kBlockAlignment}); }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  std::span<const std::byte> span() const { return {data_, size_}; }

 private:
  std::size_t size_;
  std::byte* data_;
};

// What the values of one block are, once restored.
struct BlockFacts {
  int layer = 0, kv_head = 0, token = 0;
  float k_min = 0, k_max = 0, v_min = 0, v_max = 0;
};

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read '", path, "'"));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// The codec that the flag names, else the registered one with this hash.
absl::StatusOr<codec::Codec> FindByHash(const std::string& name, std::uint64_t hash) {
  if (!name.empty()) {
    KVF_ASSIGN_OR_RETURN(codec::Codec codec, codec::OpenCodec(name));
    if (codec.Hash() == hash) return codec;
    return absl::FailedPreconditionError(absl::StrFormat(
        "the chunk was made with codec hash %016x, %s has %016x", hash, name, codec.Hash()));
  }
  for (codec::Codec& codec : codec::RegisteredCodecs()) {
    if (codec.Hash() == hash) return codec;
  }
  return absl::NotFoundError(absl::StrFormat(
      "no registered codec has the hash %016x: pass --codec NAME:PARAMETERS", hash));
}

// The pages of one layer, head by head, added to `facts`.
absl::Status DescribePage(const codec::Backend& backend, const codec::BlockSpec& spec,
                          std::span<const std::byte> page, int layer, int kv_heads, int token,
                          std::vector<BlockFacts>& facts) {
  const std::size_t values = static_cast<std::size_t>(codec::kBlockTokens) * spec.head_dim;
  std::vector<float> k(values * kv_heads), v(values * kv_heads);
  KVF_RETURN_IF_ERROR(backend.Dequantize(page, spec, {.layer = layer, .token_begin = token}, kv_heads, k, v));
  for (int head = 0; head < kv_heads; ++head) {
    const auto [k_min, k_max] =
        std::minmax_element(k.begin() + head * values, k.begin() + (head + 1) * values);
    const auto [v_min, v_max] =
        std::minmax_element(v.begin() + head * values, v.begin() + (head + 1) * values);
    facts.push_back({layer, head, token, *k_min, *k_max, *v_min, *v_max});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<BlockFacts>> DescribeBlocks(const transport::ChunkHeader& header,
                                                       const codec::Codec& codec,
                                                       std::span<const std::byte> payload) {
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<codec::Backend> backend, codec::CreateCpuBackend({}));
  std::vector<BlockFacts> facts;
  for (int layer = header.layer_begin; layer < header.layer_begin + header.layer_count; ++layer) {
    KVF_ASSIGN_OR_RETURN(const codec::BlockSpec spec, codec.ForLayer(layer, header.head_dim));
    const std::size_t page_bytes = codec::PageBytes(spec, header.kv_head_count);
    for (std::uint32_t token = 0; token < header.token_count; token += codec::kBlockTokens) {
      if (payload.size() < page_bytes)
        return absl::DataLossError("the payload is shorter than its header says");
      const AlignedBytes page(payload.first(page_bytes));
      KVF_RETURN_IF_ERROR(DescribePage(*backend, spec, page.span(), layer, header.kv_head_count,
                                       static_cast<int>(header.token_begin + token), facts));
      payload = payload.subspan(page_bytes);
    }
  }
  return facts;
}

const char* KindName(transport::ChunkKind kind) {
  switch (kind) {
    case transport::ChunkKind::kBlocks:
      return "blocks";
    case transport::ChunkKind::kSinks:
      return "sinks";
    case transport::ChunkKind::kWindow:
      return "window";
  }
  return "unknown";
}

nlohmann::json ToJson(const transport::ChunkHeader& header) {
  return {{"transfer_id", header.transfer_id.ToHex()},
          {"epoch", static_cast<std::uint32_t>(header.epoch)},
          {"sender_incarnation",
           absl::StrFormat("%016x", static_cast<std::uint64_t>(header.sender_incarnation))},
          {"chunk_seq", header.chunk_seq},
          {"kind", KindName(header.kind)},
          {"layers", {header.layer_begin, header.layer_begin + header.layer_count}},
          {"kv_heads", {header.kv_head_begin, header.kv_head_begin + header.kv_head_count}},
          {"tokens", {header.token_begin, header.token_begin + header.token_count}},
          {"head_dim", header.head_dim},
          {"codec_hash", absl::StrFormat("%016x", header.codec_hash)},
          {"payload_bytes", header.payload_bytes},
          {"payload_crc32c", absl::StrFormat("%08x", header.payload_check)}};
}

nlohmann::json ToJson(const std::vector<BlockFacts>& facts) {
  nlohmann::json blocks = nlohmann::json::array();
  for (const BlockFacts& block : facts) {
    blocks.push_back({{"layer", block.layer},
                      {"kv_head", block.kv_head},
                      {"token", block.token},
                      {"k", {block.k_min, block.k_max}},
                      {"v", {block.v_min, block.v_max}}});
  }
  return blocks;
}

void PrintFacts(const std::vector<BlockFacts>& facts) {
  std::vector<std::vector<std::string>> rows = {
      {"layer", "kv head", "tokens", "K from", "to", "V from", "to"}};
  for (const BlockFacts& block : facts) {
    rows.push_back({absl::StrCat(block.layer), absl::StrCat(block.kv_head),
                    absl::StrCat(block.token, "..", block.token + codec::kBlockTokens - 1),
                    absl::StrFormat("%.4g", block.k_min), absl::StrFormat("%.4g", block.k_max),
                    absl::StrFormat("%.4g", block.v_min), absl::StrFormat("%.4g", block.v_max)});
  }
  std::cout << FormatTable(rows);
}

absl::Status InspectChunk(const InspectFlags& flags, std::span<const std::byte> bytes) {
  KVF_ASSIGN_OR_RETURN(const transport::ChunkHeader header,
                       transport::ParseChunkHeader(bytes.first(transport::kChunkHeaderBytes)));
  const std::span<const std::byte> payload = bytes.subspan(transport::kChunkHeaderBytes);
  nlohmann::json json = ToJson(header);
  const bool whole = payload.size() == header.payload_bytes;
  const bool intact = whole && Crc32c(payload) == header.payload_check;
  json["check"] = intact  ? "passes"
                  : whole ? "fails"
                          : absl::StrCat("fails: ", payload.size(), " payload bytes in the file");
  std::vector<BlockFacts> facts;
  if (intact && header.kind == transport::ChunkKind::kBlocks) {
    KVF_ASSIGN_OR_RETURN(const codec::Codec codec, FindByHash(flags.codec, header.codec_hash));
    json["codec"] = codec.name;
    KVF_ASSIGN_OR_RETURN(facts, DescribeBlocks(header, codec, payload));
  }
  if (flags.output == OutputFormat::kJson) {
    json["blocks"] = ToJson(facts);
    std::cout << json.dump(2) << '\n';
  } else {
    std::vector<std::vector<std::string>> rows;
    for (const auto& [name, value] : json.items())
      rows.push_back({name, value.is_string() ? value.get<std::string>() : value.dump()});
    std::cout << FormatTable(rows);
    if (!facts.empty()) {
      std::cout << '\n';
      PrintFacts(facts);
    }
  }
  return intact ? absl::OkStatus() : absl::DataLossError("the payload does not pass its check");
}

absl::Status InspectPage(const InspectFlags& flags, std::span<const std::byte> bytes) {
  if (flags.codec.empty() || flags.head_dim == 0) {
    return absl::InvalidArgumentError(
        "not a chunk; for a bare page pass --codec, --head-dim and --kv-heads (and --layer, if the "
        "codec has overrides)");
  }
  KVF_ASSIGN_OR_RETURN(const codec::Codec codec, codec::OpenCodec(flags.codec));
  KVF_ASSIGN_OR_RETURN(const codec::BlockSpec spec, codec.ForLayer(flags.layer, flags.head_dim));
  const std::size_t want = codec::PageBytes(spec, flags.kv_heads);
  if (bytes.size() != want) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a page of ", flags.codec, " with head_dim ", flags.head_dim, " and ", flags.kv_heads,
        " KV heads has ", want, " bytes, the file has ", bytes.size()));
  }
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<codec::Backend> backend, codec::CreateCpuBackend({}));
  std::vector<BlockFacts> facts;
  const AlignedBytes page(bytes);
  KVF_RETURN_IF_ERROR(
      DescribePage(*backend, spec, page.span(), flags.layer, flags.kv_heads, 0, facts));
  if (flags.output == OutputFormat::kJson) {
    std::cout << nlohmann::json{{"codec", codec.name},
                                {"page_bytes", want},
                                {"blocks", ToJson(facts)}}
                     .dump(2)
              << '\n';
  } else {
    PrintFacts(facts);
  }
  return absl::OkStatus();
}

absl::Status Inspect(const InspectFlags& flags) {
  KVF_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.file));
  const std::span<const std::byte> bytes = std::as_bytes(std::span(text.data(), text.size()));
  const bool chunk = text.size() >= transport::kChunkHeaderBytes && text.compare(0, 4, "KVF1") == 0;
  return chunk ? InspectChunk(flags, bytes) : InspectPage(flags, bytes);
}

}  // namespace

void AddInspect(CLI::App& app) {
  CLI::App* command = app.add_subcommand("inspect", "Explain a dumped chunk or page");
  auto flags = std::make_shared<InspectFlags>();
  AddOutputFlag(*command, flags->output);
  command
      ->add_option("file", flags->file,
                   "what a worker wrote into its dump_folder, or the bytes of a page")
      ->required()
      ->check(CLI::ExistingFile);
  command->add_option("--codec", flags->codec,
                      "of a page, or of a chunk whose codec has parameters");
  command->add_option("--head-dim", flags->head_dim, "of a page")
      ->check(CLI::IsMember({64, 96, 128, 256}));
  command->add_option("--kv-heads", flags->kv_heads, "of a page")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  command->add_option("--layer", flags->layer, "of a page")
      ->capture_default_str()
      ->check(CLI::Range(0, 1023));
  command->footer(
      R"(Chunks are written by a prefill worker with `--set dump_folder=FOLDER` (they hold the cache of real prompts).
Examples:
  kvferry inspect dump/chunk-000001.bin
  kvferry inspect page.bin --codec kivi-4-g64 --head-dim 64 --kv-heads 3 --output json)");
  command->callback([flags] {
    if (const absl::Status done = Inspect(*flags); !done.ok()) throw CLI::RuntimeError(Fail(done));
  });
}

}  // namespace kvferry::cli
