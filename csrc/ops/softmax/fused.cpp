// The losses over rows in eager training, if nothing but the loss of a row is wanted, and plain
// calls of them.
#include "ops/fused.h"

#include <cmath>

#include "ops/plain.h"
#include "ops/softmax/checks.h"

namespace lossops::ops {
namespace {

struct Softmax : FamilyDefaults {
  static constexpr const char* name = "softmax";
  static constexpr size_t kMoving = 2, kTensors = 4;  // input, target; class weights, normalizer
  // loss, dim, form, target_form, params, ignore_index, one_if_none, reduction, keep_dims
  using Arguments = std::tuple<std::string, int64_t, std::string, std::string, std::vector<double>,
                               int64_t, bool, std::string, int64_t>;
  using Forward = decltype(softmax_forward<AnyEngine>);
  using Backward = decltype(softmax_backward<AnyEngine>);
  using BackwardInPlace = decltype(softmax_backward_<AnyEngine>);
  static constexpr size_t first_gradient = 5;

  static auto op_tensors(const TensorsOf<Softmax>& t) {
    return std::tuple<const Tensor&, const Tensor&, OptionalTensor, OptionalTensor>(
        t[0], t[1], optional(t[2]), optional(t[3]));
  }
  static auto op_cotangents(const Tensor& grad_output) {
    return std::make_tuple(grad_output, OptionalTensor(), OptionalTensor());
  }
  static auto op_mask(const MaskOf<Softmax>& mask) {
    return std::array{false, false, false, mask[0], mask[1]};
  }
  static bool gives_a_number(const Arguments& arguments) {
    return std::get<7>(arguments) != "none" && std::get<8>(arguments) == 0;
  }
  // The denominator of a mean over labels is the normalizer of the backward pass.
  static void replace(TensorsOf<Softmax>& tensors, const auto& results) {
    if (const OptionalTensor& denominator = std::get<4>(results)) tensors[3] = *denominator;
  }
};

// cross_entropy, or nll_loss of log-probabilities; returns None if the call is not plain.
OptionalTensor plain_cross_entropy(pybind11::handle input, pybind11::handle target,
                                   pybind11::handle weight, pybind11::handle ignore_index,
                                   pybind11::handle reduction, pybind11::handle label_smoothing,
                                   pybind11::handle z_loss, pybind11::handle temperature,
                                   const std::string& form) {
  PlainReader read;
  const Tensor scores = read.numbers(input), labels = read.labels(target, scores);
  const Tensor class_weight = weight.is_none() ? Tensor() : read.numbers(weight);
  const int64_t ignored = read.integer(ignore_index);
  const double smoothing = read.number(label_smoothing), of_lse = read.number(z_loss);
  const double divisor = read.number(temperature);
  std::string how = read.reduction(reduction);
  read.require(0 <= smoothing && smoothing <= 1 && std::isfinite(of_lse) && divisor > 0 &&
               std::isfinite(divisor));
  if (!read.plain()) return std::nullopt;
  const int64_t dim = scores.dim() == 1 ? 0 : 1;
  std::vector<double> params = {divisor, 0, smoothing, of_lse, 0, 0};
  return run_plain<Softmax>(
      {scores, labels, class_weight},
      {"cross_entropy", dim, form, "labels", std::move(params), ignored, false, std::move(how), 0});
}

}  // namespace

void bind_softmax(pybind11::module_& module) {
  bind_fused<Softmax>(module);
  module.def("plain_cross_entropy", torch::wrap_pybind_function(plain_cross_entropy),
             "cross_entropy, or nll_loss of log-probabilities, of a plain call; None for others.");
}

}  // namespace lossops::ops
