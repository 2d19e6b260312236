// The interface of the softmax kernels to the planning code, and the problems that have specialized
// kernels.
#pragma once

#include "cuda/softmax/divergences.cuh"

namespace lossops::cuda {

// The position of a loss in a list.
template <class Loss, class... Losses>
constexpr int position(LossList<Losses...>) {
  int i = 0, found = -1;
  ((found = std::is_same_v<Loss, Losses> ? i : found, ++i), ...);
  return found;
}

// What a row consists of, if its classes are contiguous and all tensors have the same type.
enum class Operands {
  general,              // anything else, for the general kernel
  plain_labels,         // logits and a label, with plain rows (see Forms)
  labels_with_options,  // logits and a label, otherwise
  two_logits,
  log_probs_and_probs,
  logits_and_probs
};

Operands operands_of(const SoftmaxProblem& problem);

template <Operands operands>
using FormsOf = Forms<operands == Operands::log_probs_and_probs ? 1 : 0,
                      operands == Operands::two_logits ? 0 : 2, operands == Operands::plain_labels>;

template <Operands operands>
constexpr bool of_label =
    operands == Operands::plain_labels || operands == Operands::labels_with_options;
inline bool has_label(Operands operands) {
  return operands == Operands::plain_labels || operands == Operands::labels_with_options;
}

// Any problem. Threads share rows as the schedule says.
void softmax_thread(const SoftmaxProblem& problem, const RowSchedule& schedule, const Grid& grid);
void softmax_thread_double(const SoftmaxProblem& problem, const RowSchedule& schedule,
                           const Grid& grid);
// Short rows: up to `vectors` vectors of 16 bytes of each tensor in the registers of a lane;
// `vectors` is 1, 2, 4 or 8.
void softmax_warp_labels(const SoftmaxProblem& problem, const RowSchedule& schedule, int vectors,
                         const Grid& grid);
void softmax_warp_pairs(const SoftmaxProblem& problem, const RowSchedule& schedule, int vectors,
                        const Grid& grid);
constexpr int kMostVectors = 8, kMostPairs = 4;
// Long rows, of up to `kMostClasses` classes.
void softmax_block_labels(const SoftmaxProblem& problem, const RowSchedule& schedule,
                          const Grid& grid);
void softmax_block_pairs(const SoftmaxProblem& problem, const RowSchedule& schedule,
                         const Grid& grid);
constexpr int64_t kMostClasses = int64_t(1) << 30;
// The maximum number of threads per block for which there are enough registers. The first is for
// Operands::plain_labels.
constexpr int kLabelThreads = 768, kOtherThreads = 512;

// Calls f.operator()<Loss, S>() for the loss and the element type of a problem with these operands.
template <Operands operands, class F>
void visit_type(const SoftmaxProblem& problem, const F& f) {
  const auto loss = [&]<class S>() {
    if constexpr (of_label<operands>) {
      f.template operator()<CrossEntropy, S>();  // for all label losses: they differ per row only
    } else if constexpr (operands == Operands::logits_and_probs) {
      f.template operator()<SoftCrossEntropy, S>();
    } else if constexpr (operands == Operands::log_probs_and_probs) {
      f.template operator()<Kl, S>();
    } else {
      problem.loss == position<Kl>(Divergences{}) ? f.template operator()<Kl, S>()
                                                  : f.template operator()<JensenShannon, S>();
    }
  };
  switch (problem.input.dtype) {
    case DType::bfloat16:
      return loss.template operator()<__nv_bfloat16>();
    case DType::float16:
      return loss.template operator()<__half>();
    default:
      return loss.template operator()<float>();
  }
}

template <Operands operands, class Cells, class Loss, class T, class Team>
__device__ __forceinline__ T row_loss(const SoftmaxProblem& problem, const Row<T>& row,
                                      Cells& cells, Team& team) {
  if constexpr (of_label<operands>) {
    return label_row<FormsOf<operands>>(problem, row, cells, team);
  } else {
    return divergence_row<Loss, FormsOf<operands>>(problem, row, cells, team);
  }
}

}  // namespace lossops::cuda
