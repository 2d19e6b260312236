// Memory for results as large as a tensor.
#pragma once

#include <ATen/core/Tensor.h>

namespace lossops::ops {

// Prepares a tensor that was just allocated and is about to be written. If it is large and on the
// CPU, asks the system for huge pages: page faults of 4 KiB each take several times as long as a
// loss takes to fill the memory. LOSSOPS_HUGE_PAGES=0 in the environment disables this.
at::Tensor large(at::Tensor fresh);

}  // namespace lossops::ops
