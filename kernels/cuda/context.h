#pragma once

#include "absl/status/status.h"

namespace kvferry::kernels {

// OK while this process can use GPU `ordinal`, which becomes the calling thread's. kUnavailable: it
// cannot any more; an error of a kernel, or of the GPU, has taken its context, every later call
// meets it again, and only another process can use the GPU.
absl::Status CheckContext(int ordinal);

}  // namespace kvferry::kernels
