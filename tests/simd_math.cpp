// Compares the float32 functions of cpu/common/simd.h with float64 ones, over every STEP-th float
// there is, and prints a line per function: name, largest error in units of the last place, how
// many results are of another kind (NaN, infinite) than they should be.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "cpu/common/simd.h"

using lossops::Simd;

template <class F, class G>
void compare(const char* name, const F& simd, const G& exact, double low, double high) {
  constexpr int width = Simd<float>::width;
  double worst = 0;
  long wrong_kind = 0;
  for (uint64_t start = 0; start < (uint64_t(1) << 32); start += uint64_t(width) * STEP) {
    float in[width], out[width];
    for (int i = 0; i < width; ++i) {
      const uint32_t bits = static_cast<uint32_t>(start + uint64_t(i) * STEP);
      std::memcpy(&in[i], &bits, sizeof bits);
      if (!std::isnan(in[i]) && (in[i] < low || in[i] > high)) in[i] = 0;
    }
    simd(Simd<float>::load(in)).store(out);
    for (int i = 0; i < width; ++i) {
      const double truth = exact(static_cast<double>(in[i]));
      const float rounded = static_cast<float>(truth);
      if (!std::isfinite(rounded) || !std::isfinite(out[i])) {
        const bool same = std::isnan(rounded) ? std::isnan(out[i]) : rounded == out[i];
        wrong_kind += !same;
        continue;
      }
      const int exponent = truth == 0 ? -126 : std::max(std::ilogb(truth), -126);
      worst = std::max(worst, std::fabs(out[i] - truth) / std::ldexp(1.0, exponent - 23));
    }
  }
  std::printf("%s %.3f %ld\n", name, worst, wrong_kind);
}

int main() {
  const auto expm1 = [](double x) { return std::expm1(x); };
  const auto log1p = [](double x) { return std::log1p(x); };
  const auto exp = [](double x) { return std::exp(x); };
  compare("exp", [](auto x) { return lossops::exp(x); }, exp, -INFINITY, INFINITY);
  compare("expm1", [](auto x) { return lossops::expm1(x); }, expm1, -INFINITY, INFINITY);
  compare("log1p_upto_half", [](auto x) { return lossops::log1p_upto_half(x); }, log1p, 0, 0.5);
  compare("log1p_upto_one", [](auto x) { return lossops::log1p_upto_one(x); }, log1p, 0, 1);
  const auto log = [](double x) { return std::log(x); };
  compare("log", [](auto x) { return lossops::log(x); }, log, -INFINITY, INFINITY);
  compare("log1p", [](auto x) { return lossops::log1p(x); }, log1p, -INFINITY, INFINITY);
  const auto power = [](const char* name, double exponent) {
    compare(
        name, [&](auto x) { return lossops::power(x, decltype(x)(exponent)); },
        [&](double x) { return std::pow(x, exponent); }, 0, INFINITY);
  };
  power("power_2", 2);
  power("power_5", 5);
  power("power_half", 0.5);
}
