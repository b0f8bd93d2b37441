#include "kvcodec/cpu/ops.h"

namespace kvferry::codec::cpu {

const Ops& SimdOps() { return ReferenceOps(); }

}  // namespace kvferry::codec::cpu
