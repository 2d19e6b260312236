// The softmax engine on the CPU: threads, selection of the instruction set, reduction.
#pragma once

#include <cstdint>
#include <optional>

#include "common/softmax_problem.h"

namespace lossops::cpu {

void softmax_forward(const SoftmaxProblem& problem);
// With `skip_if_one`, the gradients are left unchanged if grad_output, a single number, is 1.
void softmax_backward(const SoftmaxProblem& problem, bool skip_if_one);
// A label that is neither a class nor `ignore_index`, if there is one.
std::optional<int64_t> bad_label(const SoftmaxProblem& problem);

}  // namespace lossops::cpu
