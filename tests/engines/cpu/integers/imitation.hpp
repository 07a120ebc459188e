// The instruction of AVX512_VNNI in plain AVX-512, for processors that lack it.
#pragma once

#include <immintrin.h>

namespace imitated {

inline __m512i add_products(__m512i sums, __m512i a, __m512i b) {
    return _mm512_add_epi32(sums, _mm512_madd_epi16(a, b));  // both wrap
}

}  // namespace imitated

#define __AVX512VNNI__ 1
#define _mm512_dpwssd_epi32 imitated::add_products
