// Single instructions, so that the emulator's can be held against their definitions, and a GPU's against the same.
#include "ptx.cuh"

// in: a [4][32 lanes], b [2][32], c [4][32] as registers; out: d [4][32].
DEVICE void mma(const u32* in, u32* out) {
    const int lane = ptx::lane();
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = ptx::bits_to_float(in[(6 + i) * 32 + lane]);
    ptx::mma(d, in[lane], in[32 + lane], in[64 + lane], in[96 + lane], in[128 + lane], in[160 + lane]);
    for (int i = 0; i < 4; i++) out[i * 32 + lane] = ptx::float_to_bits(d[i]);
}

// in: a [4][32 lanes], b [2][32], c [4][32] as registers; out: d [4][32].
DEVICE void integer_mma(const u32* in, u32* out) {
    const int lane = ptx::lane();
    int d[4];
    for (int i = 0; i < 4; i++) d[i] = int(in[(6 + i) * 32 + lane]) >> 4;
    ptx::mma(d, in[lane], in[32 + lane], in[64 + lane], in[96 + lane], in[128 + lane], in[160 + lane]);
    for (int i = 0; i < 4; i++) out[i * 32 + lane] = u32(d[i]);
}

// in: values [32], sources [32]; out: shuffle, shuffle_xor by 5, ballot of odd values, [3][32].
DEVICE void exchange(const u32* in, u32* out) {
    const int lane = ptx::lane();
    const u32 value = in[lane];
    out[lane] = ptx::shuffle(value, int(in[32 + lane]));
    out[32 + lane] = ptx::shuffle_xor(value, 5);
    out[64 + lane] = ptx::ballot(value % 2);
}

// in: low [32], high [32]; out: permuted by each of the selectors that addresses use, and others, [5][32].
DEVICE void permute(const u32* in, u32* out) {
    const int lane = ptx::lane();
    const u32 low = in[lane], high = in[32 + lane];
    out[lane] = ptx::permute_bytes(low, high, 0x3340);
    out[32 + lane] = ptx::permute_bytes(low, high, 0x3372);
    out[64 + lane] = ptx::permute_bytes(low, high, 0x7654);
    out[96 + lane] = ptx::permute_bytes(low, high, 0x0123);
    out[128 + lane] = ptx::permute_bytes(low, high, 0x1616);
}

// in: two registers of two fp16 [2][32], two fp32 [2][32]; out: sum, pack, and fp32 -> fp16, bf16; fp16 -> fp32,
// [5][32].
DEVICE void convert(const u32* in, u32* out) {
    const int lane = ptx::lane();
    const float low = ptx::bits_to_float(in[64 + lane]), high = ptx::bits_to_float(in[96 + lane]);
    out[lane] = ptx::add_half2(in[lane], in[32 + lane]);
    out[32 + lane] = ptx::pack_half2(low, high);
    out[64 + lane] = ptx::float_to_half(low);
    out[96 + lane] = ptx::float_to_bfloat(low);
    out[128 + lane] = ptx::float_to_bits(ptx::half_to_float(u16(in[lane])));
}

// in: fp32 [32]; out: the nearest integers [32].
DEVICE void round(const u32* in, u32* out) {
    out[ptx::lane()] = u32(ptx::round_to_int(ptx::bits_to_float(in[ptx::lane()])));
}

// in: three registers of two fp16 [3][32]; out: a * b + c [32].
DEVICE void multiply_add(const u32* in, u32* out) {
    const int lane = ptx::lane();
    out[lane] = ptx::fma_half2(in[lane], in[32 + lane], in[64 + lane]);
}

// in: three registers [3][32]; out: (a & b) | c, (a ^ b) & c [2][32].
DEVICE void merge_bits(const u32* in, u32* out) {
    const int lane = ptx::lane();
    out[lane] = ptx::and_or(in[lane], in[32 + lane], in[64 + lane]);
    out[32 + lane] = ptx::xor_and(in[lane], in[32 + lane], in[64 + lane]);
}

// Every thread of a block writes, all synchronise, every thread reads its mirror image; then a count by atomics.
// in: values [blockDim.x]; out: mirrored values [blockDim.x], count.
DEVICE void mirror(const u32* in, u32* out) {
    ptx::wait_for_previous();
    const int thread = threadIdx.x, last = blockDim.x - 1;
    ptx::shared_store(ptx::shared_memory() + 4 * thread, in[thread]);
    ptx::sync_block();
    out[thread] = ptx::shared_load<u32>(ptx::shared_memory() + 4 * (last - thread));
    ptx::arrive(out + last + 1);
}

// The same within a warp, whose own barrier is enough.
DEVICE void mirror_in_warp(const u32* in, u32* out) {
    const ptx::Shared mine = ptx::shared_memory() + 128 * ptx::warp();
    for (int turn = 0; turn < 2; turn++) {
        ptx::shared_store(mine + 4 * ptx::lane(), in[threadIdx.x] + turn);
        ptx::sync_warp();
        out[threadIdx.x] = ptx::shared_load<u32>(mine + 4 * (31 - ptx::lane()));
        ptx::sync_warp();
    }
}

// What must be complained of.
DEVICE void warps_without_barrier(const u32* in, u32* out) {
    ptx::shared_store(ptx::shared_memory() + 4 * threadIdx.x, in[threadIdx.x]);
    ptx::sync_warp();
    out[threadIdx.x] = ptx::shared_load<u32>(ptx::shared_memory() + 4 * (threadIdx.x ^ 32));
}

DEVICE void mirror_without_barrier(const u32* in, u32* out) {
    ptx::shared_store(ptx::shared_memory() + 4 * threadIdx.x, in[threadIdx.x]);
    out[threadIdx.x] = ptx::shared_load<u32>(ptx::shared_memory() + 4 * (threadIdx.x ^ 1));
}

// The first lane asks for the number of its warp, which all lanes must ask for together.
DEVICE void one_lane_asks(const u32* in, u32* out) {
    if (ptx::lane() == 0) out[ptx::warp()] = in[0];
    ptx::sync_block();
}

DEVICE void half_a_barrier(const u32*, u32*) {
    if (threadIdx.x < 32) ptx::sync_block();
}

DEVICE void different_instructions(const u32* in, u32* out) {
    out[threadIdx.x] = threadIdx.x % 2 ? ptx::ballot(true) : ptx::shuffle(in[threadIdx.x], 0);
}

DEVICE void beyond_shared_memory(const u32*, u32*) {
    ptx::shared_store(ptx::shared_memory() + 4 * blockDim.x, 0u);
}

DEVICE void unwritten_shared_memory(const u32*, u32* out) {
    *out = ptx::shared_load<u32>(ptx::shared_memory());
}

DEVICE void misaligned(const u32* in, u32* out) {
    *out = ptx::load(reinterpret_cast<const uint2*>(in + 1)).x;
}

// Two warps store sums and count; the last one to do so reads the other's. out: the counter, then sums [2][32].
template <bool RELEASES, bool ACQUIRES>
DEVICE void sum_of_the_other(const u32* in, u32* out) {
    ptx::wait_for_previous();
    const int lane = ptx::lane(), warp = ptx::warp();
    float* sums = reinterpret_cast<float*>(out + 4);
    ptx::store(sums + 32 * warp + lane, 1.5f);
    if (RELEASES) ptx::sync_warp();
    const bool is_last = lane == 0 && ptx::arrive(out) == *in + 1;
    if (!ptx::ballot(is_last)) return;
    if (ACQUIRES) ptx::sync_warp();
    float4 other[1][1];
    const float* const from[1] = {sums + 32 * (1 - warp) + lane % 8 * 4};
    ptx::load_foreign(other, from, 0, 0, 1);
    ptx::store(sums + 64 + lane, other[0][0].x);
}

// Shared loads of known conflicts: in is the stride in bytes.
template <class T>
DEVICE void strided(const u32* in, u32* out) {
    const ptx::Shared shared = ptx::shared_memory();
    for (int i = threadIdx.x; i < 32 * 64; i += blockDim.x) ptx::shared_store(shared + 4 * i, 0u);
    ptx::sync_block();
    u32 word;
    const T value = ptx::shared_load<T>(shared + ptx::lane() * *in);
    memcpy(&word, &value, sizeof(word));
    out[threadIdx.x] = word;
}

#define ENTRY(name, ...)                                   \
    extern "C" KERNEL void name(const u32* in, u32* out) { \
        __VA_ARGS__(in, out);                              \
    }
