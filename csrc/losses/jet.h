// The return types of elementwise losses: a value and its derivatives.
#pragma once

namespace lossops {

// A function of two variables and its derivatives; x is the input, y the target.
template <class T>
struct Jet {
  T value, dx, dy, dxx, dxy, dyy;
};

// A function of the single variable d = x - y and its derivatives.
template <class T>
struct DifferenceJet {
  T value, first, second;
};

}  // namespace lossops
