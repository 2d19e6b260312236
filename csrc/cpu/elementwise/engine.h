// The elementwise engine on the CPU: threads, selection of the instruction set, reduction.
#pragma once

#include "common/elementwise_problem.h"

namespace lossops::cpu {

void elementwise_forward(const ElementwiseProblem& problem);
// With `skip_if_one`, the gradients are left unchanged if grad_output, a single number, is 1.
void elementwise_backward(const ElementwiseProblem& problem, bool skip_if_one);
void elementwise_double_backward(const ElementwiseProblem& problem);
// Multiplies dense memory by the number at `factor`; does nothing if that is 1.
void elementwise_rescale(void* data, DType dtype, int64_t numel, const void* factor,
                         DType factor_dtype);

// The instruction set in use: "default", "avx2" or "avx512".
const char* instruction_set();

}  // namespace lossops::cpu
