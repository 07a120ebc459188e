// The instructions of the `neon` path in plain C++, by SIMD Everywhere (Debian: libsimde-dev).
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>
