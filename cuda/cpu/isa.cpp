#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace msgl {

namespace {

constexpr const char *kNames[] = {"portable", "avx2", "avx512"};

bool supported(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return true;
#if defined(MSGL_HAVE_avx2)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    default:
      return false;
  }
}

Isa choose() {
  if (const char *wanted = std::getenv("MINISGL_ISA"); wanted != nullptr && *wanted != '\0') {
    for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
      if (std::strcmp(wanted, kNames[static_cast<int>(isa)]) == 0 && supported(isa)) return isa;
    }
    throw std::runtime_error(std::string("MINISGL_ISA=") + wanted + " cannot run on this machine");
  }
  for (Isa isa : {Isa::avx512, Isa::avx2}) {
    if (supported(isa)) return isa;
  }
  return Isa::portable;
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char *isa_name() { return kNames[static_cast<int>(isa())]; }

}  // namespace msgl
