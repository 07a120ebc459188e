// The randomised Hadamard transforms of QuIP# and QTIP (Tseng et al., 2024), a whole one of any number of rows in one
// launch.
//
// A length is P segments of L = 2^k: U = (H kron S) / sqrt(P L), with H of order P given by its signs, S Sylvester's
// matrix of order L. The two factors commute, so each block mixes segments first and transforms one of length L then:
//
//     row    segment 0     1             P-1          thread block (row, i), its threads in groups of L / 4:
//          +---------+---------+---+---------+          each group: the sum of +- every G-th segment, signs H[i]
//     r    |  +- j   |  +- j   |   |  +- j   |          add the groups
//          +---------+---------+---+---------+          fast Walsh-Hadamard transform of L numbers, four a thread
//                         |                             segment i of the result
//                         v
//     result r   segment i: z[j] = sum over k of H[i][k] x[k L + j], then S z
//
// Every block reads its whole row, from L2.
#include "hadamard.cuh"

constexpr int most_threads = 512;
constexpr int each = 4;      // numbers of a segment that a thread has, neighbours
constexpr int together = 4;  // segments whose loads travel together

struct Rotation {
    const u32* signs;     // [segment of the result][group][word]: bit i is set where H has -1 for the group's i-th
    const void* factors;  // [length] of V: SU or SV
    int segments;         // P
    int segment;          // L, at least four
    int groups;           // G of L / 4 threads
    int digits;           // what a number of rotated x becomes: 3 or 4 signed digits of base 256, or 0: fp16
    int halves;           // how many fp16: one, or two, the second what the first leaves
    int pairs;            // whether fp16 are in the places of pairs
    int y_is_float;
    float root;   // 1 / sqrt(length); of sums of fp16, times the power of two that is in these
    u64 scales;   // where in the workspace: float [row]
    u64 rotated;  // signed bytes [row][digit][length] or fp16 [row][half][length], in their places
    u64 sums;     // float [row][length]
};

// Where a thread is: its row and segment of the result, its group and which four neighbours it has.
struct Place {
    int row, segment, quads, group, quad;

    DEVICE explicit Place(const Rotation& r)
        : row(blockIdx.x / r.segments),
          segment(blockIdx.x % r.segments),
          quads(r.segment / each),
          group(threadIdx.x / quads),
          quad(threadIdx.x % quads) {}
};

// Rows of x times SU, and the sum of their magnitudes.
template <class X, class V>
struct Input {
    const typename X::storage* row;
    const typename V::storage* factors;
    Four<V> factor[together];
    Four<X> value[together];
    float magnitude;

    DEVICE void load_factor(int i, int at) { factor[i] = Four<V>::load_early(factors + at); }
    DEVICE void load_value(int i, int at) { value[i] = Four<X>::load(row + at); }

    DEVICE float4 product(int i) {
        const float4 x = value[i].widen(), f = factor[i].widen();
        const float4 p = make_float4(x.x * f.x, x.y * f.y, x.z * f.z, x.w * f.w);
        magnitude += (size(p.x) + size(p.y)) + (size(p.z) + size(p.w));
        return p;
    }

    DEVICE static float size(float value) { return ptx::bits_to_float(::magnitude(value)); }
};

struct Sums {
    const float* row;
    float4 value[together];
    float magnitude;

    DEVICE void load_factor(int, int) {}
    DEVICE void load_value(int i, int at) { value[i] = ptx::load(reinterpret_cast<const float4*>(row + at)); }
    DEVICE float4 product(int i) { return value[i]; }
};

// What this thread adds of the mixed segment. Waits for the kernel before when all is asked for that it has not
// written.
template <class Source>
DEVICE float4 mix(Source& source, const Rotation& r, const Place& place) {
    const int count = place.group < r.groups ? (r.segments - place.group + r.groups - 1) / r.groups : 0;
    const int words = (r.segments + r.groups * lanes - 1) / (r.groups * lanes), stride = r.groups * r.segment;
    const u32* signs = r.signs + (place.segment * r.groups + place.group) * words;
    int at = threadIdx.x * each;  // group * L + where its four are
    u32 word = count ? ptx::load_early(signs) : 0;
#pragma unroll
    for (int i = 0; i < together; i++)
        if (i < count) source.load_factor(i, at + i * stride);
    ptx::wait_for_previous();
    float4 sum = make_float4(0, 0, 0, 0);
    for (int first = 0; first < count; first += together) {
        if (first && first % lanes == 0) word = ptx::load(signs + first / lanes);
#pragma unroll
        for (int i = 0; i < together; i++)
            if (first + i < count) {
                if (first) source.load_factor(i, at + i * stride);
                source.load_value(i, at + i * stride);
            }
#pragma unroll
        for (int i = 0; i < together; i++)
            if (first + i < count) {
                const float sign = ptx::bits_to_float(0x3f800000u | (word >> i) << 31);
                const float4 p = source.product(i);
                sum = make_float4(sum.x + sign * p.x, sum.y + sign * p.y, sum.z + sign * p.z, sum.w + sign * p.w);
            }
        word >>= together;
        at += together * stride;
    }
    return sum;
}

// Four neighbours of a segment of the result, in the threads of the first group, before the root is taken; the source's
// magnitude becomes that of all threads. shared: twelve words a thread and one a warp.
template <class Source>
DEVICE void rotate(Source& source, const Rotation& r, const Place& place, float (&value)[each]) {
    const ptx::Shared shared = ptx::shared_memory(), exchange = shared + blockDim.x * 16;
    float4 sum = mix(source, r, place);
    ptx::shared_store(shared + threadIdx.x * 16, sum);
    store_sum_of_warp(source.magnitude, exchange + blockDim.x * 32);
    ptx::sync_block();
    source.magnitude = add_warps(exchange + blockDim.x * 32);
    if (place.group == 0)
#pragma unroll 2
        for (int group = 1; group < r.groups; group++) {
            const float4 more = ptx::shared_load<float4>(shared + (group * place.quads + place.quad) * 16);
            sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
        }
    value[0] = sum.x, value[1] = sum.y, value[2] = sum.z, value[3] = sum.w;
    // Which of a place's bits a thread's number is, and which its four, is the same to the transform.
    walsh_hadamard(value, r.segment, exchange);
}

// Where k stands in a row of fp16: of 64 neighbours, what a lane needs for its first code words comes before that for
// its second ones, so that four lanes read (and write) 64 bytes together; of 8 in the order of a word's nibbles.
DEVICE int place_of(int k) {
    return (k & ~63) | (k & 8) << 2 | (k & 48) >> 1 | (k & 1) << 2 | (k & 6) >> 1;
}

// The same of 32 neighbours where a lane's weights are neighbours two by two: what it needs of four eights together.
DEVICE int place_of_pairs(int k) {
    return (k & ~31) | (k & 6) << 2 | (k & 24) >> 2 | (k & 1);
}

// Where four neighbours' digits stand from k on: of 16 the second and the third four have changed places, so that what
// goes to an mma together lies together.
DEVICE int place_of_digits(int k) {
    return (k & ~12) | (k & 4) << 1 | (k & 8) >> 1;
}

// Bytes of four words: the i-th of all become word i.
DEVICE uint4 transpose_bytes(u32 a, u32 b, u32 c, u32 d) {
    const u32 ab = ptx::permute_bytes(a, b, 0x5140), cd = ptx::permute_bytes(c, d, 0x5140);
    const u32 ab_high = ptx::permute_bytes(a, b, 0x7362), cd_high = ptx::permute_bytes(c, d, 0x7362);
    return make_uint4(ptx::permute_bytes(ab, cd, 0x5410), ptx::permute_bytes(ab, cd, 0x7632),
                      ptx::permute_bytes(ab_high, cd_high, 0x5410), ptx::permute_bytes(ab_high, cd_high, 0x7632));
}

// x: [n][length] of X. No number of a rotated row is larger than the sum of the row's magnitudes over the root of the
// length: as a float that is at least 2^e and less than twice that, and so the row times 2^-e is stored, in units of
// 2^-29 or 2^-21 or, as fp16, times 2^14.
template <class X, class V>
DEVICE void rotate_in(const void* x, void*, u8* workspace, const Rotation& r) {
    const Place place(r);
    const int length = r.segments * r.segment;
    Input<X, V> input;
    input.row = static_cast<const typename X::storage*>(x) + size_t(place.row) * length;
    input.factors = static_cast<const typename V::storage*>(r.factors);
    input.magnitude = 0;
    float value[each];
    rotate(input, r, place, value);
    const int found = int(ptx::float_to_bits(input.magnitude * r.root) >> 23);  // e, biased; 255 for no number
    const int exponent = normal_exponent(found);
    if (place.segment == 0 && threadIdx.x == 0)
        ptx::store(reinterpret_cast<float*>(workspace + r.scales) + place.row,
                   ptx::bits_to_float(found > 253 ? 0x7fc00000u : u32(exponent) << 23));
    if (place.group > 0) return;
    const float scale = inverse_power(exponent);
    const int k = place.segment * r.segment + place.quad * each;
    if (r.digits == 0) {
        u16* to = reinterpret_cast<u16*>(workspace + r.rotated) + size_t(place.row) * r.halves * length;
#pragma unroll
        for (int i = 0; i < each; i++) {
            const float number = value[i] * r.root * scale * 16384.0f;
            const u16 half = ptx::float_to_half(number);
            const int at = r.pairs ? place_of_pairs(k + i) : place_of(k + i);
            ptx::store(to + at, half);
            if (r.halves == 2) ptx::store(to + length + at, ptx::float_to_half(number - ptx::half_to_float(half)));
        }
        return;
    }
    const float unit = r.digits == 4 ? 536870912.0f : 2097152.0f;
    u32 words[each];
#pragma unroll
    for (int i = 0; i < each; i++) {
        // All bytes but the highest become signed by what they carry over.
        constexpr u32 halves = 0x00808080;
        words[i] = (u32(ptx::round_to_int(value[i] * r.root * scale * unit)) + halves) ^ halves;
    }
    const uint4 rows = transpose_bytes(words[0], words[1], words[2], words[3]);
    const u32 digit[] = {rows.x, rows.y, rows.z, rows.w};
    u8* to = workspace + r.rotated + size_t(place.row) * r.digits * length + place_of_digits(k);
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < r.digits) ptx::store(reinterpret_cast<u32*>(to + size_t(i) * length), digit[i]);
}

// y: [n][length] of X or float32, from sums that have their row's power of two.
template <class X, class V>
DEVICE void rotate_out(const void*, void* y, u8* workspace, const Rotation& r) {
    const Place place(r);
    const int length = r.segments * r.segment, first = place.segment * r.segment + place.quad * each;
    const Four<V> factors = Four<V>::load_early(static_cast<const typename V::storage*>(r.factors) + first);
    Sums sums;
    sums.row = reinterpret_cast<const float*>(workspace + r.sums) + size_t(place.row) * length;
    sums.magnitude = 0;
    float value[each];
    rotate(sums, r, place, value);
    if (place.group > 0) return;
    const float scale = ptx::load(reinterpret_cast<const float*>(workspace + r.scales) + place.row);
    const float4 f = factors.widen();
    const float factor[each] = {f.x, f.y, f.z, f.w};
    const size_t at = size_t(place.row) * length + first;
#pragma unroll
    for (int i = 0; i < each; i++) {
        const float result = value[i] * r.root * scale * factor[i];
        store_y<X>(y, r.y_is_float, at + i, result);
    }
}

// That a multiprocessor's registers are shared out to, twice: a block finds room beside one of quip.cu where so few are
// enough.
template <void (*BODY)(const void*, void*, u8*, const Rotation&)>
constexpr int register_threads = most_threads * 5 / 4;
template <>
constexpr int register_threads<rotate_in<Float, Float>> = most_threads;

#define ENTRY(name, ...)                                                       \
    extern "C" KERNEL void __launch_bounds__(register_threads<__VA_ARGS__>, 2) \
        name(const void* x, void* y, u8* workspace, Rotation r) {              \
        ptx::let_next_start();                                                 \
        __VA_ARGS__(x, y, workspace, r);                                       \
    }
