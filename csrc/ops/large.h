// Memory for results of a tensor's size.
#pragma once

#include <ATen/core/Tensor.h>

namespace lossops::ops {

// A tensor that was just allocated and is about to be written. Where there is much of it, on the
// CPU, asks the system for huge pages: to be given 4 KiB at a time, by an interrupt each, takes
// several times as long as a loss takes to fill them. LOSSOPS_HUGE_PAGES=0 in the environment
// forbids it.
at::Tensor large(at::Tensor fresh);

}  // namespace lossops::ops
