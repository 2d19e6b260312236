// The instruction sets that the kernels are compiled for, and the selection at run time.
#pragma once

namespace lossops::cpu {

// Named as in torch's CPU_CAPABILITY.
enum class InstructionSet { DEFAULT, AVX2, AVX512 };

// The set that torch selects for its own kernels, which ATEN_CPU_CAPABILITY may override.
InstructionSet widest_instruction_set();

// Calls f<set>() for the first set of the list (widest first) that is no wider than `widest`, or
// for the last one if all are wider.
template <InstructionSet set, InstructionSet... narrower, class F>
decltype(auto) with_instruction_set(InstructionSet widest, const F& f) {
  if constexpr (sizeof...(narrower) > 0) {
    if (set > widest) return with_instruction_set<narrower...>(widest, f);
  }
  return f.template operator()<set>();
}

// The same for all sets that are compiled, which setup.py lists.
template <class F>
decltype(auto) with_instruction_set(const F& f) {
  using enum InstructionSet;
  return with_instruction_set<LOSSOPS_INSTRUCTION_SETS>(widest_instruction_set(), f);
}

}  // namespace lossops::cpu
