#pragma once

#include "kvcodec/lut.h"

// The tables of kvcodec/lut.h where kernels can look into them at run time.
namespace kvferry::kernels {

struct DeviceLut {
  int bits = 0;
  bool is_rms = false;  // of the scale: LutScale::kRms
  bool shifted_keys = false;
  float levels[16] = {};
  float middles[15] = {};
};
struct DeviceLuts {
  DeviceLut of[codec::kLuts.size() + 1];  // by LutTable
};

constexpr DeviceLuts MakeDeviceLuts() {
  DeviceLuts luts;
  for (const codec::Lut& lut : codec::kLuts) {
    DeviceLut& to = luts.of[static_cast<int>(lut.table)];
    to.bits = lut.bits;
    to.is_rms = lut.scale == codec::LutScale::kRms;
    to.shifted_keys = lut.shifted_keys;
    for (int i = 0; i < lut.count(); ++i) to.levels[i] = lut.levels[i];
    for (int i = 0; i + 1 < lut.count(); ++i) to.middles[i] = lut.middle(i);
  }
  return luts;
}

static __constant__ DeviceLuts device_luts = MakeDeviceLuts();

}  // namespace kvferry::kernels
