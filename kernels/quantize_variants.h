#pragma once

#include "kernels/quantize_block.h"

// The compiled kernels of quantize_block and flush_window, one file per head size. Bits and GK are
// runtime parameters of each.
namespace kvferry::kernels {

struct QuantizeVariant {
  void (*kernel)(QuantizeParams) = nullptr;  // null: not compiled
  int threads = 0;
  int ctas_per_head = 1;  // of each item
  int ctas_per_sm = 0;    // that fetch ahead; 0: they do not
};

// any_width: else kFastWidths only.
template <int kHeadDim>
QuantizeVariant FindScalarVariant(codec::Raw16 type, int v_group_channels, bool any_width);
extern template QuantizeVariant FindScalarVariant<64>(codec::Raw16, int, bool);
extern template QuantizeVariant FindScalarVariant<96>(codec::Raw16, int, bool);
extern template QuantizeVariant FindScalarVariant<128>(codec::Raw16, int, bool);
extern template QuantizeVariant FindScalarVariant<256>(codec::Raw16, int, bool);

QuantizeVariant FindInt8Variant(codec::Raw16 type, int head_dim);
QuantizeVariant FindFp8Variant(codec::Raw16 type, int head_dim);
// Of all tables: the one of the launch is QuantizeParams::table.
QuantizeVariant FindLutVariant(codec::Raw16 type, int head_dim);
QuantizeVariant FindCoupledVariant(codec::Raw16 type, int head_dim,
                                   const codec::Coupling& coupling);
int CoupledSharedBytes(int head_dim, const codec::Coupling& coupling);
QuantizeVariant FindRaw16Variant(codec::Raw16 type, int head_dim);

}  // namespace kvferry::kernels
