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
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>

namespace lossops::ops {

// Whether nothing but autograd observes the call.
inline bool nobody_looks_on() {
  constexpr auto kTransform = c10::DispatchKey::FuncTorchDynamicLayerFrontMode;
  return !c10::impl::tls_is_dispatch_key_included(kTransform) &&
         !torch::autograd::ForwardADLevel::try_get_by_idx(0) && !torch::jit::tracer::isTracing() &&
         !at::impl::torch_function_mode_enabled();
}

// The tensor, if it is of exactly torch's own class, dense, on a device that has kernels, and not a
// wrapper of another tensor: only autograd and autocast need handling before its kernels run.
inline const at::Tensor* plain_tensor(pybind11::handle object) {
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
  if (!THPVariable_CheckExact(object.ptr())) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(object.ptr());
  const bool plain = (tensor.key_set().raw_repr() & ~kPlain.raw_repr()) == 0;
  // An inference tensor lacks a key as well, and autograd does not save it.
  return plain && !tensor.is_inference() ? &tensor : nullptr;
}

// Scores that the kernels accept as they are, with a result of the same dtype.
inline const at::Tensor* plain_scores(pybind11::handle object) {
  const at::Tensor* const scores = plain_tensor(object);
  if (!scores) return nullptr;
  const auto type = scores->scalar_type();
  if (type == at::kFloat || type == at::kDouble) return scores;
  const bool half = type == at::kHalf || type == at::kBFloat16;
  return half && !at::autocast::is_autocast_enabled(scores->device().type()) ? scores : nullptr;
}

// A reduction to one number for all rows ("mean", "sum"), or none: one number per row.
inline std::optional<std::string> plain_reduction(pybind11::handle object) {
  if (!PyUnicode_CheckExact(object.ptr())) return std::nullopt;
  for (const char* name : {"mean", "sum", "none"}) {
    if (PyUnicode_CompareWithASCIIString(object.ptr(), name) == 0) return name;
  }
  return std::nullopt;
}

inline std::optional<double> plain_float(pybind11::handle object) {
  if (!PyFloat_CheckExact(object.ptr())) return std::nullopt;
  return PyFloat_AS_DOUBLE(object.ptr());
}

inline std::optional<int64_t> plain_int(pybind11::handle object) {
  if (!PyLong_CheckExact(object.ptr())) return std::nullopt;
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(object.ptr(), &overflow);
  return overflow ? std::nullopt : std::optional(value);
}

// The loss of a plain call. If a gradient is wanted, it comes from fused(), attached to the graph;
// otherwise it is the first result of forward(), the raw op.
template <class Fused, class Forward>
pybind11::object run_plain(const at::Tensor& scores, const Fused& fused, const Forward& forward) {
  at::Tensor loss;
  {
    const pybind11::gil_scoped_release without_gil;
    if (at::GradMode::is_enabled() && scores.requires_grad()) {
      loss = fused();
    } else {
      const at::AutoDispatchBelowADInplaceOrView guard;
      loss = std::get<0>(forward());
    }
  }
  return pybind11::cast(loss);
}

}  // namespace lossops::ops
