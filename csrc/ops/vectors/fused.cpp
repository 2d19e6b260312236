// The losses over rows of vectors in eager training, and plain calls of one of them.
#include "ops/fused.h"

#include <cmath>

#include "ops/plain.h"
#include "ops/vectors/checks.h"

namespace lossops::ops {
namespace {

struct Vectors : FamilyDefaults {
  static constexpr const char* name = "vectors";
  static constexpr size_t kMoving = kMaxVectors;
  static constexpr size_t kTensors = kMaxVectors + 2;  // the vectors; label, row_weight
  using Arguments = std::tuple<std::string, std::vector<double>, std::string>;
  using Forward = decltype(vectors_forward<AnyEngine>);
  using Backward = decltype(vectors_backward<AnyEngine>);

  static auto op_tensors(const TensorsOf<Vectors>& t) {
    size_t count = 0;
    while (count < kMaxVectors && t[count].defined()) ++count;
    return std::make_tuple(at::TensorList(t.data(), count), optional(t[kMaxVectors]),
                           optional(t[kMaxVectors + 1]));
  }
  static bool gives_a_number(const Arguments& arguments) {
    return std::get<2>(arguments) != "none";
  }
};

// multi_margin_loss; returns None if the call is not plain.
OptionalTensor plain_multi_margin(pybind11::handle input, pybind11::handle target,
                                  pybind11::handle p, pybind11::handle margin,
                                  pybind11::handle reduction) {
  PlainReader read;
  const Tensor scores = read.numbers(input), labels = read.labels(target, scores);
  const int64_t power = read.integer(p);
  const double distance = read.number(margin);
  std::string how = read.reduction(reduction);
  read.require((power == 1 || power == 2) && !std::isnan(distance));
  if (!read.plain() || scores.dim() != 2 || labels.scalar_type() != at::kLong) {
    return std::nullopt;
  }
  const char* const name = power == 1 ? "multi_margin" : "multi_margin_squared";
  return run_plain<Vectors>({scores, Tensor(), Tensor(), labels},
                            {name, {distance}, std::move(how)});
}

}  // namespace

void bind_vectors(pybind11::module_& module) {
  bind_fused<Vectors>(module);
  module.def("plain_multi_margin", torch::wrap_pybind_function(plain_multi_margin),
             "multi_margin_loss of a plain call; None for others.");
}

}  // namespace lossops::ops
