// The instructions of the `vbmi` path in plain C++, by SIMD Everywhere (Debian: libsimde-dev).
#pragma once

#include <simde/x86/avx512.h>

#define __AVX512F__ 1
#define __AVX512VBMI__ 1
#define __m512i simde__m512i
#define _mm512_add_epi16 simde_mm512_add_epi16
#define _mm512_loadu_si512 simde_mm512_loadu_si512
#define _mm512_cvtepi32_epi8 cvtepi32_epi8
#define _mm512_mask_blend_epi16 simde_mm512_mask_blend_epi16
#define _mm512_mask_blend_epi8 simde_mm512_mask_blend_epi8
#define _mm512_maskz_loadu_epi8 maskz_loadu_epi8
#define _mm512_movepi8_mask simde_mm512_movepi8_mask
#define _mm512_permutex2var_epi8 simde_mm512_permutex2var_epi8
#define _mm512_permutexvar_epi8 simde_mm512_permutexvar_epi8
#define _mm512_setzero_si512 simde_mm512_setzero_si512
#define _mm512_slli_epi16 simde_mm512_slli_epi16
#define _mm512_slli_epi32 simde_mm512_slli_epi32
#define _mm512_srli_epi16 simde_mm512_srli_epi16
#define _mm512_srli_epi32 simde_mm512_srli_epi32
#define _mm512_storeu_si512 simde_mm512_storeu_si512
#define _mm512_sub_epi16 simde_mm512_sub_epi16

static inline simde__m512i maskz_loadu_epi8(unsigned long long mask, const void* from) {
    unsigned char bytes[64] = {};
    for (int i = 0; i < 64; ++i)
        if (mask >> i & 1) bytes[i] = static_cast<const unsigned char*>(from)[i];
    return simde_mm512_loadu_si512(bytes);
}

static inline __m128i cvtepi32_epi8(simde__m512i values) {
    int words[16];
    unsigned char bytes[16];
    simde_mm512_storeu_si512(words, values);
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<unsigned char>(words[i]);
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}
