// Picking kernels at run time. A kernel lives in a *.simd.cpp, which is compiled once for each instruction set, in the
// namespace that its set is named by:
//
//   name.h         MSGL_EVERY_ISA(void scale(float *x, int64_t count);)
//   name.simd.cpp  namespace msgl::MSGL_ISA { void scale(float *x, int64_t count) { ... } }
//   name.cpp       MSGL_PICK(scale)(x, count);
#pragma once

#if defined(MSGL_ISA)
#define MSGL_EVERY_ISA(...) \
  namespace MSGL_ISA {      \
  __VA_ARGS__               \
  }
#else
#if defined(MSGL_HAVE_avx2)
#define MSGL_ISA_DECLARE_X86(...) \
  namespace avx2 {                \
  __VA_ARGS__                     \
  }                               \
  namespace avx512 {              \
  __VA_ARGS__                     \
  }
#define MSGL_PICK(function)                              \
  (msgl::isa() == msgl::Isa::avx512 ? &avx512::function  \
   : msgl::isa() == msgl::Isa::avx2 ? &avx2::function    \
                                    : &portable::function)
#else
#define MSGL_ISA_DECLARE_X86(...)
#define MSGL_PICK(function) (&portable::function)
#endif
#define MSGL_EVERY_ISA(...) \
  namespace portable {      \
  __VA_ARGS__               \
  }                         \
  MSGL_ISA_DECLARE_X86(__VA_ARGS__)
#endif

namespace msgl {

enum class Isa { portable, avx2, avx512 };

/// The best instruction set that was built and that this machine has, or the one that MINISGL_ISA names; throws where
/// it names one that cannot run here.
Isa isa();
/// Its name: "portable", "avx2" or "avx512".
const char *isa_name();

}  // namespace msgl
