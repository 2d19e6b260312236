// Training in plain eager mode: the loss, and an autograd node that has its gradient ready.
#pragma once

#include <pybind11/pybind11.h>

namespace lossops::ops {

void bind_fused(pybind11::module_& module);

}  // namespace lossops::ops
