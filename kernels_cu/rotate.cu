// The randomised Hadamard transforms of QuIP# (Tseng et al., 2024), a whole one of any number of rows in one launch.
//
// A length is P segments of L = 2^k: U = (H kron S) / sqrt(P L), with H of order P given by its signs, S Sylvester's
// matrix of order L. The two factors commute, so each block mixes segments first and transforms one of length L then:
//
//     row    segment 0     1             P-1          thread block (row, i), its threads in groups of L:
//          +---------+---------+---+---------+          each group: the sum of +- every G-th segment, signs H[i]
//     r    |  +- j   |  +- j   |   |  +- j   |          add the groups
//          +---------+---------+---+---------+          fast Walsh-Hadamard transform of L numbers, a thread each
//                         |                             segment i of the result
//                         v
//     result r   segment i: z[j] = sum over k of H[i][k] x[k L + j], then S z
//
// Every block reads its whole row, from L2.
#include "floats.cuh"
#include "hadamard.cuh"

constexpr int most_threads = 1024;

struct Rotation {
    const u32* signs;      // [segment of the result][group][word]: bit i is set where H has -1 for the group's i-th
    const float* factors;  // [length]: SU or SV, over sqrt(length)
    int segments;          // P
    int segment;           // L, at most most_threads
    int groups;            // G of L threads
    int log_length;        // of the length, rounded up
    int columns;           // that a row of x becomes as fp16: 1, or 2 with what the first has lost
    int y_is_float;
    u64 scales;   // where in the workspace: float [row]
    u64 rotated;  // fp16 [row][column][length]
    u64 sums;     // float [row][length]
};

// Rows of x times factors, and the bits of the largest.
template <class X>
struct Input {
    const typename X::storage* row;
    const float* factors;
    u32 largest;

    DEVICE float element(int at) {
        const float value = X::widen(ptx::load(row + at)) * ptx::load(factors + at);
        const u32 magnitude = ptx::float_to_bits(value) & 0x7fffffffu;  // NaN is larger than all
        largest = magnitude > largest ? magnitude : largest;
        return value;
    }
};

// Of the result, what this block makes: blocks of a row follow each other.
struct Place {
    int row, segment;

    DEVICE explicit Place(const Rotation& r) : row(blockIdx.x / r.segments), segment(blockIdx.x % r.segments) {}

    // Factors of the segment, before anything else is there.
    DEVICE void prefetch_factors(const Rotation& r) const {
        if (r.segment % 4 == 0 && threadIdx.x == 0) ptx::prefetch(r.factors + segment * r.segment, 4 * r.segment);
    }
};

struct Sums {
    const float* row;

    DEVICE float element(int at) { return ptx::load(row + at); }
};

// What this thread adds of the mixed segment, whose element is threadIdx.x % L.
template <class Source>
DEVICE float mix(Source& source, const Rotation& r, int segment) {
    const int group = threadIdx.x / r.segment;
    if (group >= r.groups) return 0;
    const int words = (r.segments + r.groups * lanes - 1) / (r.groups * lanes), stride = r.groups * r.segment;
    const u32* signs = r.signs + (segment * r.groups + group) * words;
    float sum = 0;
    int at = threadIdx.x;  // group * L + element
    for (int rest = (r.segments - group + r.groups - 1) / r.groups; rest > 0; rest -= lanes) {
        u32 word = ptx::load(signs++);
#pragma unroll 8
        for (int i = 0; i < min(rest, lanes); i++, word >>= 1, at += stride) {
            const float value = source.element(at);
            sum += word & 1 ? -value : value;
        }
    }
    return sum;
}

// The sum over groups, in threads below L. shared: a word a thread.
DEVICE float add_groups(float sum, const Rotation& r, ptx::Shared shared) {
    if (r.groups == 1) return sum;
    ptx::shared_store(shared + threadIdx.x * 4, sum);
    ptx::sync_block();
    if (int(threadIdx.x) < r.segment)
        for (int group = 1; group < r.groups; group++)
            sum += ptx::shared_load<float>(shared + (group * r.segment + threadIdx.x) * 4);
    return sum;
}

// This thread's element of a segment of the result. shared: three words a thread.
template <class Source>
DEVICE float rotate(Source& source, const Rotation& r, int segment, ptx::Shared shared) {
    float value[1] = {add_groups(mix(source, r, segment), r, shared)};
    walsh_hadamard(value, r.segment, shared + blockDim.x * 4);  // what threads from L on hold does not matter
    return value[0];
}

// Where k stands in a row: of 64 neighbours, what a lane needs for its first code words comes before that for its
// second ones, so that four lanes read (and write) 64 bytes together.
DEVICE int place_of(int k) {
    return (k & ~63) | (k & 8) << 2 | (k & 48) >> 1 | (k & 7);
}

// x: [n][length] of X. A row becomes fp16 times a power of two that leaves no result above 2^15: no result is
// larger than the largest element times the length.
template <class X>
DEVICE void rotate_in(const void* x, void*, u8* workspace, const Rotation& r) {
    const ptx::Shared shared = ptx::shared_memory();
    const Place place(r);
    place.prefetch_factors(r);
    ptx::wait_for_previous();
    const int length = r.segments * r.segment;
    Input<X> input = {static_cast<const typename X::storage*>(x) + size_t(place.row) * length, r.factors, 0};
    const float value = rotate(input, r, place.segment, shared);
    const int exponent =
        268 - int(largest_of_block(input.largest, shared + blockDim.x * 12) >> 23) - r.log_length;  // of 2, biased
    const int biased = exponent < 1 ? 1 : min(exponent, 253);
    if (place.segment == 0 && threadIdx.x == 0)
        ptx::store(reinterpret_cast<float*>(workspace + r.scales) + place.row,
                   ptx::bits_to_float(u32(254 - biased) << 23));
    if (int(threadIdx.x) >= r.segment) return;
    const float scaled = value * ptx::bits_to_float(u32(biased) << 23);
    u16* to = reinterpret_cast<u16*>(workspace + r.rotated) + size_t(place.row) * r.columns * length +
              place_of(place.segment * r.segment + threadIdx.x);
    const u16 high = ptx::float_to_half(scaled);
    ptx::store(to, high);
    if (r.columns == 2) ptx::store(to + length, ptx::float_to_half(scaled - ptx::half_to_float(high)));
}

// y: [n][length] of X or float32, from sums that have their row's power of two.
template <class X>
DEVICE void rotate_out(const void*, void* y, u8* workspace, const Rotation& r) {
    const Place place(r);
    place.prefetch_factors(r);
    ptx::wait_for_previous();
    const int length = r.segments * r.segment;
    Sums sums = {reinterpret_cast<const float*>(workspace + r.sums) + size_t(place.row) * length};
    const float sum = rotate(sums, r, place.segment, ptx::shared_memory());
    if (int(threadIdx.x) >= r.segment) return;
    const int column = place.segment * r.segment + threadIdx.x;
    const float scale = ptx::load(reinterpret_cast<const float*>(workspace + r.scales) + place.row);
    const float value = sum * scale * ptx::load(r.factors + column);
    const size_t at = size_t(place.row) * length + column;
    if (r.y_is_float)
        ptx::store(static_cast<float*>(y) + at, value);
    else
        ptx::store(static_cast<typename X::storage*>(y) + at, X::narrow(value));
}

#define ENTRY(name, ...)                                          \
    extern "C" KERNEL void __launch_bounds__(most_threads, 1)     \
        name(const void* x, void* y, u8* workspace, Rotation r) { \
        ptx::let_next_start();                                    \
        __VA_ARGS__(x, y, workspace, r);                          \
    }
