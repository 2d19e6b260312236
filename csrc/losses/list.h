// Lists of losses. An engine compiles each of its kernels once per entry; the position of a loss in
// its list is its id.
#pragma once

namespace lossops {

constexpr int kMaxParams = 2;  // of a loss; those over vectors have more

template <class... Losses>
struct LossList {};

template <class... Losses>
constexpr int size(LossList<Losses...>) {
  return sizeof...(Losses);
}

// Calls f.operator()<Loss>() for the id-th loss of the list.
template <class... Losses, class F>
void visit(LossList<Losses...>, int id, F&& f) {
  int i = 0;
  (void)((i++ == id ? (f.template operator()<Losses>(), true) : false) || ...);
}

// Whether a loss takes more registers than others: on the GPU it then gets them, and fewer threads.
template <class Loss>
constexpr bool kIsLong = requires { Loss::is_long; };

}  // namespace lossops
