// The Python module lossops._C. Importing it registers the ops. It also reports how it was built.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/elementwise/engine.h"
#include "losses/elementwise.h"
#include "ops/fused.h"

#define LOSSOPS_STRING_(...) #__VA_ARGS__
#define LOSSOPS_STRING(...) LOSSOPS_STRING_(__VA_ARGS__)

namespace {

template <class... Losses>
pybind11::list names_of(lossops::LossList<Losses...>) {
  pybind11::list names;
  (names.append(Losses::name), ...);
  return names;
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = LOSSOPS_COMPILER;
  info["torch"] = LOSSOPS_TORCH_VERSION;
  info["instruction_sets"] = LOSSOPS_STRING(LOSSOPS_INSTRUCTION_SETS);
#if defined(LOSSOPS_WITH_CUDA)
  info["cuda"] = LOSSOPS_CUDA_VERSION;
  info["cuda_arch"] = LOSSOPS_CUDA_ARCH;
#else
  info["cuda"] = pybind11::none();
  info["cuda_arch"] = pybind11::none();
#endif
  info["elementwise_losses"] = names_of(lossops::ElementwiseLosses{});
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The compiled kernels of lossops.";
  module.def("build_info", &build_info, "How the extension was built.");
  module.def("instruction_set", &lossops::cpu::instruction_set,
             "The instruction set that the CPU kernels use on this machine.");
  module.def(
      "set_differentiable_backward",
      [](pybind11::function function) {
        lossops::ops::differentiable_backward = function.release();
      },
      "Says which function gives gradients that are differentiable themselves.");
  lossops::ops::bind_elementwise(module);
  lossops::ops::bind_softmax(module);
  lossops::ops::bind_vectors(module);
}
