// Lookup of losses by name.
#pragma once

#include <optional>
#include <string_view>

#include "losses/list.h"

namespace lossops::ops {

// The position of a loss in its list, if there is one of this name.
template <class... Losses>
std::optional<int> find(LossList<Losses...>, std::string_view name) {
  int position = 0;
  const bool known = ((name == Losses::name || (++position, false)) || ...);
  return known ? std::optional<int>(position) : std::nullopt;
}

}  // namespace lossops::ops
