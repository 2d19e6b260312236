// The instruction sets that the kernels are compiled for, and the choice among them at run time.
#pragma once

namespace lossops::cpu {

// As torch names them in CPU_CAPABILITY.
enum class InstructionSet { DEFAULT, AVX2, AVX512 };

// The set that torch chooses for its own kernels, ATEN_CPU_CAPABILITY included.
InstructionSet widest_instruction_set();

// f<set>() for the first set of a list, from wide to narrow, that is no wider than `widest`; for
// the last one if all are.
template <InstructionSet set, InstructionSet... narrower, class F>
decltype(auto) with_instruction_set(InstructionSet widest, const F& f) {
  if constexpr (sizeof...(narrower) > 0) {
    if (set > widest) return with_instruction_set<narrower...>(widest, f);
  }
  return f.template operator()<set>();
}

// The same of all that are compiled, which setup.py lists.
template <class F>
decltype(auto) with_instruction_set(const F& f) {
  using enum InstructionSet;
  return with_instruction_set<LOSSOPS_INSTRUCTION_SETS>(widest_instruction_set(), f);
}

}  // namespace lossops::cpu
