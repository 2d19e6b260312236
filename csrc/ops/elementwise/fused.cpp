// The elementwise losses in eager training.
#include "ops/fused.h"

#include "ops/elementwise/checks.h"

namespace lossops::ops {
namespace {

struct Elementwise : FamilyDefaults {
  static constexpr const char* name = "elementwise";
  static constexpr size_t kMoving = 3, kTensors = 4;  // input, target, weight; normalizer
  using Arguments = std::tuple<std::string, std::vector<double>, std::string, int64_t>;
  using Forward = decltype(elementwise_forward<AnyEngine>);
  using Backward = decltype(elementwise_backward<AnyEngine>);
  using BackwardInPlace = decltype(elementwise_backward_<AnyEngine>);

  static auto op_tensors(const TensorsOf<Elementwise>& t) {
    return std::tuple<const Tensor&, const Tensor&, OptionalTensor, OptionalTensor>(
        t[0], t[1], optional(t[2]), optional(t[3]));
  }
  static bool gives_a_number(const Arguments& arguments) {
    const auto& [loss, params, reduction, keep_dims] = arguments;
    return reduction != "none" && keep_dims == 0;
  }
};

}  // namespace

void bind_elementwise(pybind11::module_& module) {
  bind_fused<Elementwise>(module);
}

}  // namespace lossops::ops
