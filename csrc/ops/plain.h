// Plain calls, checked and run entirely in C++. For a loss over a few rows, this takes a fraction
// of the time of the same work in Python, which would be most of a training step.
//
// A call is plain if it needs no special handling: ordinary tensors on devices of this library,
// arguments of the expected types, and no active transform, mode or tracer. Everything else,
// including invalid arguments, is left to the Python functions, which handle all kinds of calls and
// report errors.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include "ops/fused.h"

namespace lossops::ops {

// Reads the arguments of a call. What it returns is valid only if the call is plain.
class PlainReader {
 public:
  bool plain() const { return plain_; }
  void require(bool condition) { plain_ = plain_ && condition; }

  // A tensor of exactly torch's own class, dense, on a device that has kernels, and not a wrapper
  // of another tensor: only autograd and autocast need handling before its kernels run.
  Tensor tensor(pybind11::handle object) {
    constexpr c10::DispatchKeySet kPlain({
        c10::DispatchKey::ADInplaceOrView,
        c10::DispatchKey::CPU,
        c10::DispatchKey::AutogradCPU,
        c10::DispatchKey::AutocastCPU,
#if defined(LOSSOPS_WITH_CUDA)
        c10::DispatchKey::CUDA,
        c10::DispatchKey::AutogradCUDA,
        c10::DispatchKey::AutocastCUDA,
#endif
    });
    require(THPVariable_CheckExact(object.ptr()));
    if (!plain_) return Tensor();
    const Tensor& tensor = THPVariable_Unpack(object.ptr());
    // An inference tensor lacks a key as well, and autograd does not save it.
    require((tensor.key_set().raw_repr() & ~kPlain.raw_repr()) == 0 && !tensor.is_inference());
    return tensor;
  }

  // Numbers that the kernels accept as they are, with a result of the same dtype.
  Tensor numbers(pybind11::handle object) {
    const Tensor found = tensor(object);
    if (!plain_) return found;
    const auto type = found.scalar_type();
    const bool half = type == at::kHalf || type == at::kBFloat16;
    require(found.numel() > 0 &&
            (type == at::kFloat || type == at::kDouble ||
             (half && !at::autocast::is_autocast_enabled(found.device().type()))));
    return found;
  }

  // One class index for each row of these scores.
  Tensor labels(pybind11::handle object, const Tensor& scores) {
    const Tensor found = tensor(object);
    if (!plain_) return found;
    const auto type = found.scalar_type();
    require((type == at::kLong || type == at::kInt || type == at::kByte) &&
            found.dim() + 1 == scores.dim());
    return found;
  }

  // A reduction to one number for all rows ("mean", "sum"), or none: one number per row.
  std::string reduction(pybind11::handle object) {
    if (PyUnicode_CheckExact(object.ptr())) {
      for (const char* name : {"mean", "sum", "none"}) {
        if (PyUnicode_CompareWithASCIIString(object.ptr(), name) == 0) return name;
      }
    }
    require(false);
    return {};
  }

  double number(pybind11::handle object) {
    require(PyFloat_CheckExact(object.ptr()));
    return plain_ ? PyFloat_AS_DOUBLE(object.ptr()) : 0;
  }

  int64_t integer(pybind11::handle object) {
    require(PyLong_CheckExact(object.ptr()));
    if (!plain_) return 0;
    int overflow = 0;
    const int64_t value = PyLong_AsLongLongAndOverflow(object.ptr(), &overflow);
    require(overflow == 0);
    return value;
  }

 private:
  // Whether nothing but autograd observes the call.
  static bool nobody_looks_on() {
    constexpr auto kTransform = c10::DispatchKey::FuncTorchDynamicLayerFrontMode;
    return !c10::impl::tls_is_dispatch_key_included(kTransform) &&
           !torch::autograd::ForwardADLevel::try_get_by_idx(0) &&
           !torch::jit::tracer::isTracing() && !at::impl::torch_function_mode_enabled();
  }

  bool plain_ = nobody_looks_on();
};

// The loss of a plain call, in the dtype of its first tensor. None if it fails: the Python
// functions then repeat the call, and report the error.
template <class Family>
OptionalTensor run_plain(const TensorsOf<Family>& tensors, typename Family::Arguments arguments) {
  const pybind11::gil_scoped_release without_gil;
  try {
    return fused_loss<Family>(tensors, std::move(arguments), tensors[0].scalar_type());
  } catch (const c10::Error&) {
    return std::nullopt;
  }
}

}  // namespace lossops::ops
