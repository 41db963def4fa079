// What this library stands on.
#include <cstdio>

#include "device.h"
#include "isa.h"

MSGL_EXPORT int32_t msgl_libraries(char *text, int64_t bytes) {
  return msgl::guard([&] {
#if defined(MSGL_HAVE_avx2)
    const char *const built = "portable, avx2, avx512";
#else
    const char *const built = "portable";
#endif
    std::snprintf(text, static_cast<size_t>(bytes), "instruction set\t%s\tof %s (MINISGL_ISA chooses)\n",
                  msgl::isa_name(), built);
    return 0;
  });
}
