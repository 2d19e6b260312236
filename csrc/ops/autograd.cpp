// The raw ops have no derivative of their own; lossops.autograd gives the losses theirs. Whoever
// differentiates a raw op gets an error, not a gradient that is silently missing.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace {

void refuse_derivatives(torch::Library& library) {
  for (const char* op :
       {"elementwise_forward", "elementwise_backward", "elementwise_double_backward",
        "softmax_forward", "softmax_backward", "vectors_forward", "vectors_backward"}) {
    library.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(lossops, Autograd, library) {
  refuse_derivatives(library);
}
TORCH_LIBRARY_IMPL(lossops_triton, Autograd, library) {
  refuse_derivatives(library);
}
