// The instructions of the `avx512` path in plain C++, by SIMD Everywhere (Debian: libsimde-dev).
#pragma once

#include <simde/x86/avx512.h>

#define __AVX512BW__ 1
#define __m512i simde__m512i
#define __mmask32 simde__mmask32
#define _mm512_add_epi16 simde_mm512_add_epi16
#define _mm512_and_si512 simde_mm512_and_si512
#define _mm512_broadcast_i32x4 simde_mm512_broadcast_i32x4
#define _mm512_loadu_si512 simde_mm512_loadu_si512
#define _mm512_mask_blend_epi16 simde_mm512_mask_blend_epi16
#define _mm512_mask_srli_epi16 mask_srli_epi16
#define _mm512_permutex2var_epi16 simde_mm512_permutex2var_epi16
#define _mm512_permutexvar_epi16 simde_mm512_permutexvar_epi16
#define _mm512_set1_epi16 simde_mm512_set1_epi16
#define _mm512_setzero_si512 simde_mm512_setzero_si512
#define _mm512_shuffle_epi8 simde_mm512_shuffle_epi8
#define _mm512_slli_epi16 simde_mm512_slli_epi16
#define _mm512_srli_epi16 simde_mm512_srli_epi16
#define _mm512_storeu_si512 simde_mm512_storeu_si512
#define _mm512_sub_epi16 simde_mm512_sub_epi16
#define _mm512_test_epi16_mask simde_mm512_test_epi16_mask

static inline simde__m512i mask_srli_epi16(simde__m512i from, simde__mmask32 mask, simde__m512i values, unsigned bits) {
    return simde_mm512_mask_mov_epi16(from, mask, simde_mm512_srli_epi16(values, bits));
}
