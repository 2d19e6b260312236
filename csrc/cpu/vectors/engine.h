// The vector engine on the CPU.
#pragma once

#include <optional>

#include "common/vectors_problem.h"
#include "cpu/common/instruction_sets.h"

namespace lossops::cpu {

// Computes everything that the problem defines.
void vectors_run(const VectorsProblem& problem);
// Writes the sum of the rows' values divided by `over`, bitwise identical for any number of
// threads.
void write_sum(const VectorsProblem& problem, double over, void* result, DType dtype);
// The first label that is neither an index of its row nor, in a list, -1.
std::optional<int64_t> bad_index(const VectorsProblem& problem);

// What an instruction set provides: a function over a range of rows, called from a single thread.
struct VectorsKernels {
  void (*run)(const VectorsProblem&, int64_t begin, int64_t end);
};

template <InstructionSet>
const VectorsKernels& vectors_kernels();

}  // namespace lossops::cpu
