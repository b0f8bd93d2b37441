#include <algorithm>
#include <array>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "bench/quality/scheme.h"
#include "common/status_macros.h"

namespace kvferry::bench {
namespace {

using Axis = TensorScheme::Axis;
using Levels = TensorScheme::Levels;
using Rows = std::vector<SimulatedCodec>;

constexpr TensorScheme kKeys = {.axis = Axis::kChannel};
constexpr TensorScheme kValues = {.axis = Axis::kToken};

// KIVI's codes in our blocks: what one factor at a time is changed of.
SimulatedCodec Base(const char* group, std::string name, int k_bits, int v_bits) {
  SimulatedCodec row{.group = group, .name = std::move(name), .k = kKeys, .v = kValues};
  row.k.bits = k_bits;
  row.v.bits = v_bits;
  return row;
}

// `change` of K and V at 2 and 4 bits.
template <typename Change>
void AddPair(Rows& rows, const char* group, const std::string& name, Change change) {
  for (const int bits : {2, 4}) {
    SimulatedCodec row = Base(group, absl::StrCat(bits, " bits, ", name), bits, bits);
    change(row);
    rows.push_back(std::move(row));
  }
}

void AddLayers(Rows& rows, int layers, int) {
  for (int layer = 0; layer < layers; ++layer) {
    for (const auto& [what, k, v] :
         {std::tuple("K and V", 2, 2), std::tuple("K", 2, 16), std::tuple("V", 16, 2)}) {
      SimulatedCodec row = Base("layers", absl::StrCat("layer ", layer, ", ", what), k, v);
      row.only_layer = layer;
      rows.push_back(std::move(row));
    }
  }
}

void AddHeads(Rows& rows, int layers, int kv_heads) {
  for (int layer = 0; layer < layers; ++layer) {
    for (int head = 0; head < kv_heads; ++head) {
      SimulatedCodec row = Base("heads", absl::StrCat("layer ", layer, ", head ", head), 2, 2);
      row.only_layer = layer;
      row.only_head = head;
      rows.push_back(std::move(row));
    }
  }
}

void AddKeysValues(Rows& rows, int, int) {
  for (const auto& [k, v] : {std::pair(16, 16),
                             {2, 2},
                             {3, 3},
                             {4, 4},
                             {8, 8},
                             {2, 4},
                             {4, 2},
                             {2, 16},
                             {16, 2},
                             {4, 16},
                             {16, 4}}) {
    rows.push_back(Base("keys_values", absl::StrCat("K", k, "V", v), k, v));
  }
}

void AddAxes(Rows& rows, int, int) {
  AddPair(rows, "axes", "K per channel, V per token", [](SimulatedCodec&) {});
  AddPair(rows, "axes", "K per token", [](SimulatedCodec& row) { row.k.axis = Axis::kToken; });
  AddPair(rows, "axes", "V per channel", [](SimulatedCodec& row) { row.v.axis = Axis::kChannel; });
}

void AddSinks(Rows& rows, int, int) {
  for (const int sinks : {0, 1, 4, 16}) {
    AddPair(rows, "sinks", absl::StrCat(sinks, " sinks"),
            [sinks](SimulatedCodec& row) { row.window.sinks = sinks; });
  }
}

void AddWindow(Rows& rows, int, int) {
  for (const int recent : {0, 64, 128}) {
    AddPair(rows, "window", absl::StrCat(recent, " recent"),
            [recent](SimulatedCodec& row) { row.window.recent = recent; });
  }
}

void AddGroups(Rows& rows, int, int) {
  for (const int size : {16, 32, 64}) {
    AddPair(rows, "groups", absl::StrCat("groups of ", size),
            [size](SimulatedCodec& row) { row.k.group = row.v.group = size; });
  }
  AddPair(rows, "groups", "K groups of 128, the paper's rule", [](SimulatedCodec& row) {
    row.rule = FlushRule::kKivi;
    row.k.group = 128;
  });
}

void AddLevels(Rows& rows, int, int) {
  const std::array kinds = {std::pair("min-max", Levels::kMinMax),
                            std::pair("clipped", Levels::kClipped),
                            std::pair("Lloyd-Max", Levels::kLloydMax)};
  for (const int bits : {2, 3, 4}) {
    for (const auto& [name, levels] : kinds) {
      SimulatedCodec row = Base("levels", absl::StrCat(bits, " bits, ", name), bits, bits);
      row.k.levels = row.v.levels = levels;
      rows.push_back(std::move(row));
    }
  }
  for (const auto& [name, levels] : kinds) {
    SimulatedCodec keys = Base("levels", absl::StrCat("K2V16, ", name), 2, 16);
    keys.k.levels = levels;
    rows.push_back(std::move(keys));
    SimulatedCodec values = Base("levels", absl::StrCat("K16V2, ", name), 16, 2);
    values.v.levels = levels;
    rows.push_back(std::move(values));
  }
}

// A mean per channel and block takes what is common to the tokens out of keys, and a scale per
// token fits what is left: against a scale and min per channel and group.
void AddMeans(Rows& rows, int, int) {
  AddPair(rows, "means", "K per channel", [](SimulatedCodec&) {});
  for (const int size : {32, 64}) {
    const std::string name = absl::StrCat("K per token in groups of ", size);
    AddPair(rows, "means", name, [size](SimulatedCodec& row) {
      row.k.axis = Axis::kToken;
      row.k.group = size;
    });
    AddPair(rows, "means", name + ", block means", [size](SimulatedCodec& row) {
      row.k.axis = Axis::kToken;
      row.k.group = size;
      row.k.block_means = true;
    });
  }
  AddPair(rows, "means", "K per channel, Lloyd-Max in groups of 64", [](SimulatedCodec& row) {
    row.k.group = 64;
    row.k.levels = Levels::kLloydMax;
  });
}

void AddRotation(Rows& rows, int, int) {
  AddPair(rows, "rotation", "none", [](SimulatedCodec&) {});
  AddPair(rows, "rotation", "V rotated", [](SimulatedCodec& row) { row.v.rotated = true; });
  AddPair(rows, "rotation", "K rotated", [](SimulatedCodec& row) { row.k.rotated = true; });
  AddPair(rows, "rotation", "K per token", [](SimulatedCodec& row) { row.k.axis = Axis::kToken; });
  AddPair(rows, "rotation", "K per token, rotated", [](SimulatedCodec& row) {
    row.k.axis = Axis::kToken;
    row.k.rotated = true;
  });
  AddPair(rows, "rotation", "K per token, block means, rotated", [](SimulatedCodec& row) {
    row.k.axis = Axis::kToken;
    row.k.block_means = row.k.rotated = true;
  });
  AddPair(rows, "rotation", "V rotated, Lloyd-Max", [](SimulatedCodec& row) {
    row.v.rotated = true;
    row.v.levels = Levels::kLloydMax;
  });
}

void AddScales(Rows& rows, int, int) {
  for (const auto& [size, bits] : {std::pair(32, 16), {32, 8}, {16, 8}, {64, 16}, {64, 8}}) {
    AddPair(rows, "scales", absl::StrCat("groups of ", size, ", scales of ", bits, " bits"),
            [size = size, bits = bits](SimulatedCodec& row) {
              row.k.group = row.v.group = size;
              row.k.scale_bits = row.v.scale_bits = bits;
            });
  }
}

void AddOutliers(Rows& rows, int, int) {
  for (const double share : {0.0, 0.005, 0.01, 0.02}) {
    AddPair(rows, "outliers", absl::StrCat(share * 100, " % exact"),
            [share](SimulatedCodec& row) { row.k.outliers = row.v.outliers = share; });
  }
  for (const auto& [name, k, v] :
       {std::tuple("1 % of K exact", 0.01, 0.0), std::tuple("1 % of V exact", 0.0, 0.01)}) {
    AddPair(rows, "outliers", name, [k = k, v = v](SimulatedCodec& row) {
      row.k.outliers = k;
      row.v.outliers = v;
    });
  }
}

void AddRope(Rows& rows, int, int) {
  AddPair(rows, "rope", "K after RoPE", [](SimulatedCodec&) {});
  AddPair(rows, "rope", "K before RoPE", [](SimulatedCodec& row) { row.k.before_rope = true; });
  AddPair(rows, "rope", "K before RoPE, groups of 64", [](SimulatedCodec& row) {
    row.k.before_rope = true;
    row.k.group = 64;
  });
  AddPair(rows, "rope", "K after RoPE, groups of 64",
          [](SimulatedCodec& row) { row.k.group = 64; });
}

// The papers' own rules, beside ours.
void AddRules(Rows& rows, int, int) {
  AddPair(rows, "rules", "our blocks", [](SimulatedCodec&) {});
  AddPair(rows, "rules", "our blocks, no sinks", [](SimulatedCodec& row) { row.window.sinks = 0; });
  AddPair(rows, "rules", "KIVI's window", [](SimulatedCodec& row) { row.rule = FlushRule::kKivi; });
  SimulatedCodec nf4 = Base("rules", "NF4 at once, per head", 4, 4);
  nf4.rule = FlushRule::kAtOnce;
  for (TensorScheme* side : {&nf4.k, &nf4.v}) {
    side->levels = Levels::kNf4Table;
    side->axis = Axis::kToken;
    side->group = 64;
  }
  SimulatedCodec wide = nf4;
  wide.name = "NF4 at once, blocks of 256 across heads (NQKV)";
  for (TensorScheme* side : {&wide.k, &wide.v}) {
    side->axis = Axis::kHeads;
    side->group = 256;
  }
  rows.push_back(std::move(nf4));
  rows.push_back(std::move(wide));
}

// Codecs of the registry by their own bytes: what the path that serves gives is to be the same.
void AddProduction(Rows& rows, int, int) {
  for (const codec::Codec& codec : codec::RegisteredCodecs()) {
    if (codec.raw_type != codec::Raw16::kFp16 || codec.kind == codec::BlockKind::kRaw16 ||
        codec.NeedsCodebooks()) {
      continue;
    }
    rows.push_back({.group = "production", .name = codec.name, .production = codec});
  }
  for (const char* name : {"kivi-2:v_bits=4", "kivi-2:k_bits=3,v_bits=3"}) {
    rows.push_back(
        {.group = "production", .name = name, .production = codec::FindCodec(name).value()});
  }
}

struct Group {
  const char* name;
  void (*add)(Rows&, int layers, int kv_heads);
};

constexpr std::array kGroups = {
    Group{"production", AddProduction},
    Group{"keys_values", AddKeysValues},
    Group{"axes", AddAxes},
    Group{"rules", AddRules},
    Group{"sinks", AddSinks},
    Group{"window", AddWindow},
    Group{"groups", AddGroups},
    Group{"levels", AddLevels},
    Group{"means", AddMeans},
    Group{"rotation", AddRotation},
    Group{"scales", AddScales},
    Group{"outliers", AddOutliers},
    Group{"rope", AddRope},
    Group{"layers", AddLayers},
    Group{"heads", AddHeads},
};

}  // namespace

absl::StatusOr<std::vector<SimulatedCodec>> ReportRows(const std::vector<std::string>& groups,
                                                       int layers, int kv_heads) {
  Rows rows;
  const auto add = [&](const Group& group) { group.add(rows, layers, kv_heads); };
  if (groups.empty()) std::for_each(kGroups.begin(), kGroups.end(), add);
  for (const std::string& name : groups) {
    const auto found = std::find_if(kGroups.begin(), kGroups.end(),
                                    [&](const Group& group) { return group.name == name; });
    if (found == kGroups.end()) {
      return absl::NotFoundError(absl::StrCat(
          "no report '", name, "'; there are ",
          absl::StrJoin(kGroups, ", ",
                        [](std::string* out, const Group& group) { out->append(group.name); })));
    }
    add(*found);
  }
  return rows;
}

}  // namespace kvferry::bench
