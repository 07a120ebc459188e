// Element types of x and out, and their conversion to and from float.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace codegemm {

#if defined(__aarch64__)
using half = __fp16;  // GCC knows the other name from version 13 on
#else
using half = _Float16;
#endif

enum class Dtype : int32_t { float16, bfloat16, float32, float64 };

struct bfloat16 {
    uint16_t bits;

    operator float() const {
        const uint32_t word = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &word, 4);
        return value;
    }

    explicit bfloat16(float value) {  // to nearest even; a NaN stays one
        uint32_t word;
        std::memcpy(&word, &value, 4);
        const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
        bits = nan ? uint16_t(word >> 16 | 0x40) : uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
    }
};

template <class Visitor>
void visit(Dtype dtype, Visitor&& visitor) {
    switch (dtype) {
        case Dtype::float16: return visitor(static_cast<half*>(nullptr));
        case Dtype::bfloat16: return visitor(static_cast<bfloat16*>(nullptr));
        case Dtype::float32: return visitor(static_cast<float*>(nullptr));
        case Dtype::float64: return visitor(static_cast<double*>(nullptr));
    }
}

// Where element `index` of an array is.
template <class Array>
Array* element(Array* values, Dtype dtype, size_t index) {
    using Byte = std::conditional_t<std::is_const_v<Array>, const char, char>;
    const size_t size = dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
    return static_cast<Byte*>(values) + index * size;
}

// floats[i] = values[offset + i], i in 0 .. count-1
[[gnu::noinline]] inline void to_float(const void* values, Dtype dtype, size_t offset, float* floats, size_t count) {
    visit(dtype, [&](auto* type) {
        const auto* typed = static_cast<decltype(type)>(const_cast<void*>(values)) + offset;
        for (size_t i = 0; i < count; ++i) floats[i] = float(typed[i]);
    });
}

// floats[i] = values[offset + places[i]], i in 0 .. count-1
[[gnu::noinline]] inline void to_float(const void* values, Dtype dtype, size_t offset, const int32_t* places,
                                       float* floats, size_t count) {
    visit(dtype, [&](auto* type) {
        const auto* typed = static_cast<decltype(type)>(const_cast<void*>(values)) + offset;
        for (size_t i = 0; i < count; ++i) floats[i] = float(typed[places[i]]);
    });
}

// values[offset + i] = floats[i * stride], i in 0 .. count-1
[[gnu::noinline]] inline void from_float(const float* floats, size_t stride, void* values, Dtype dtype, size_t offset,
                                         size_t count) {
    visit(dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        T* typed = static_cast<T*>(values) + offset;
        for (size_t i = 0; i < count; ++i) typed[i] = T(floats[i * stride]);
    });
}

// y[r] += bias[first + r] for row i of x and `count` rows of W, where the arguments have a bias
template <class Args>
inline void add_bias(const Args& a, size_t i, size_t first, float* y, size_t count) {
    if (!a.bias) return;
    const float* bias = a.bias + i * a.bias_pitch + first;
    for (size_t r = 0; r < count; ++r) y[r] += bias[r];
}

// A vector of N floats, for the compiler to map to the machine's registers.
template <int N>
struct Vector {
    typedef float type __attribute__((vector_size(4 * N)));
    typedef float unaligned __attribute__((vector_size(4 * N), aligned(4), may_alias));
};
template <int N>
using vec = typename Vector<N>::type;

template <int N>
inline vec<N> load(const float* from) {
    // Not memcpy: of 64 bytes GCC 12 makes it in pieces, through the stack.
    return *reinterpret_cast<const typename Vector<N>::unaligned*>(from);
}
template <int N>
inline void store(float* to, vec<N> value) {
    *reinterpret_cast<typename Vector<N>::unaligned*>(to) = value;
}

// N centroid components as floats.
template <int N>
inline vec<N> widen(const float* from) {
    return load<N>(from);
}
template <int N>
inline vec<N> widen(const half* from) {
#ifdef __F16C__  // GCC 12 converts vectors of halves one by one
    if constexpr (N == 4) return vec<N>(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#ifdef __AVX512F__
    if constexpr (N == 16) return vec<N>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#endif
    if constexpr (N == 8) return vec<N>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#endif
    typedef half halves __attribute__((vector_size(2 * N), aligned(2), may_alias));
    return __builtin_convertvector(*reinterpret_cast<const halves*>(from), vec<N>);
}

// The lanes of one register (two on machines whose registers hold fewer).
constexpr int lanes = 16;

// Floats of a register for sums that take turns with other types: compilers convert only whole registers well.
#ifdef __AVX512F__
constexpr int wide = 16;
#else
constexpr int wide = 8;
#endif

}  // namespace codegemm
