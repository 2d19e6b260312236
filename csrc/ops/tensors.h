// Optional tensors, as the raw ops take and return them.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>
#include <utility>

namespace lossops::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Converts an undefined tensor to None.
inline OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// The `count` results of an op starting at `first`, with undefined tensors in place of None.
template <size_t first, size_t count, class... Results>
std::array<Tensor, count> defined_results(const std::tuple<Results...>& results) {
  return [&]<size_t... i>(std::index_sequence<i...>) {
    return std::array<Tensor, count>{std::get<first + i>(results).value_or(Tensor())...};
  }(std::make_index_sequence<count>());
}

// The results of an op that returns only tensors, undefined where they are not wanted.
template <class... Results>
std::array<Tensor, sizeof...(Results)> as_array(const std::tuple<Results...>& results) {
  return std::apply([](const Results&... result) { return std::array{result...}; }, results);
}

}  // namespace lossops::ops
