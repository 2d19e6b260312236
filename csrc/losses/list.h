// Lists of losses. An engine compiles each of its kernels once per entry. The id of a loss is its
// position in the list.
#pragma once

namespace lossops {

constexpr int kMaxParams = 2;  // per loss; losses over vectors have more

template <class... Losses>
struct LossList {};

template <class... Losses>
constexpr int size(LossList<Losses...>) {
  return sizeof...(Losses);
}

// Calls f.operator()<Loss>() for the loss with this id.
template <class... Losses, class F>
void visit(LossList<Losses...>, int id, F&& f) {
  int i = 0;
  (void)((i++ == id ? (f.template operator()<Losses>(), true) : false) || ...);
}

// Whether a loss needs more registers than others. On the GPU it gets them, at the cost of fewer
// threads.
template <class Loss>
constexpr bool kIsLong = requires { Loss::is_long; };

}  // namespace lossops
