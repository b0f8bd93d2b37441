#include "kvcodec/cpu/simd.h"

namespace kvferry::codec::cpu {

void AttendRawSimd(const HeadRows& rows, int tokens, const QueryGroup& group,
                   const SoftmaxState& state) {
  ReferenceOps().attend_raw(rows, tokens, group, state);
}
void AttendBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                      const SoftmaxState& state) {
  ReferenceOps().attend_blocks(blocks, spec, group, state);
}

}  // namespace kvferry::codec::cpu
