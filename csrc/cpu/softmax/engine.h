// The softmax engine on the CPU: threads, choice of instruction set, reduction.
#pragma once

#include <cstdint>
#include <optional>

#include "common/softmax_problem.h"

namespace lossops::cpu {

void softmax_forward(const SoftmaxProblem& problem);
// `skip_if_one`: where grad_output, a single number, is 1, the gradients are left as they are.
void softmax_backward(const SoftmaxProblem& problem, bool skip_if_one);
// A label that is neither a class nor to be ignored, if there is one.
std::optional<int64_t> bad_label(const SoftmaxProblem& problem);

}  // namespace lossops::cpu
