// CUDA's words for a host compiler: what kernels_cu/ptx.cuh offers, one fiber a thread, every access counted.
#pragma once

// Nothing larger: it is compiled anew with every library of kernels.
#include <cstddef>
#include <cstdint>
#include <cstring>

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#define DEVICE inline
#define KERNEL
#define __launch_bounds__(...)

struct uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(u32 x, u32 y) {
    return {x, y};
}
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) {
    return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
struct Index {
    u32 x, y, z;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;
extern "C" float fmaf(float a, float b, float c) noexcept;
template <class T>
constexpr T min(T a, T b) {
    return b < a ? b : a;
}

namespace emulator {

enum class Order { forward, reversed, shuffled };

struct Launch {
    int grid_x, grid_y, grid_z, threads, shared_bytes, cluster, order;
    u32 seed;
    u64 awaited[3][2];  // x, y and the workspace, from where to where: not to be touched before the kernel has waited
};

// Runs the kernel with all blocks in flight at once. nullptr, or what a kernel did that a GPU would not forgive.
using Kernel = void (*)(void** arguments);
const char* run(const Launch& launch, Kernel kernel, void** arguments);

// Counters since they were last cleared: a line for every function that touched memory.
extern "C" const char* emulator_report();

enum class Space { shared, global };
enum class Kind { load, store };

// Where an access stands in the kernel's source.
struct Site {
    const char* file;
    const char* function;
    int line;
};

// As default arguments these name the caller.
#define CODEGEMM_SITE \
    const char *file = __builtin_FILE(), const char *function = __builtin_FUNCTION(), int line = __builtin_LINE()

void access(Space space, Kind kind, const void* address, int bytes, Site site);
void foreign(const void* address);
void trip();  // a warp's batch of loads of what other blocks wrote
u8* shared_memory();
void complain(const char* format, ...);

}  // namespace emulator

namespace ptx {

int lane();
int warp();
int warps();
using Shared = u8*;
inline Shared shared_memory() {
    return emulator::shared_memory();
}

template <class T>
T shared_load(Shared address, CODEGEMM_SITE) {
    emulator::access(emulator::Space::shared, emulator::Kind::load, address, sizeof(T), {file, function, line});
    T value;
    memcpy(&value, address, sizeof(T));
    return value;
}

template <class T>
void shared_store(Shared address, T value, CODEGEMM_SITE) {
    emulator::access(emulator::Space::shared, emulator::Kind::store, address, sizeof(T), {file, function, line});
    memcpy(address, &value, sizeof(T));
}

template <class T>
T load(const T* address, CODEGEMM_SITE) {
    emulator::access(emulator::Space::global, emulator::Kind::load, address, sizeof(T), {file, function, line});
    return *address;
}

template <class T>
T load_once(const T* address, CODEGEMM_SITE) {
    return load(address, file, function, line);
}

template <class T>
T load_in_order(const T* address, CODEGEMM_SITE) {
    return load(address, file, function, line);
}

template <class T>
T load_early(const T* address, CODEGEMM_SITE) {
    return load(address, file, function, line);
}

inline uint4 load_l2(const uint4* address, CODEGEMM_SITE) {
    return load(address, file, function, line);
}

template <class T>
void store(T* address, T value, CODEGEMM_SITE) {
    emulator::access(emulator::Space::global, emulator::Kind::store, address, sizeof(T), {file, function, line});
    *address = value;
}

template <int ITEMS, int COUNT>
void load_foreign(float4 (&value)[ITEMS][COUNT], const float* const (&from)[ITEMS], size_t stride, int first, int count,
                  CODEGEMM_SITE) {
    emulator::trip();
    for (int i = 0; i < ITEMS; i++)
        for (int s = 0; s < COUNT; s++) {
            value[i][s] = {};
            if (from[i] == nullptr || first + s >= count) continue;
            const float* at = from[i] + (first + s) * stride;
            for (int word = 0; word < 4; word++) emulator::foreign(at + word);
            value[i][s] = load(reinterpret_cast<const float4*>(at), file, function, line);
        }
}

// Copies are made when they are waited for.
void begin_copy(Shared to, const void* from, int bytes, emulator::Site site);
void end_copies();
void await_copies(int count);
template <class T>
void copy_async(Shared to, const T* from, CODEGEMM_SITE) {
    begin_copy(to, from, sizeof(T), {file, function, line});
}
template <int COUNT>
void wait_copies() {
    await_copies(COUNT);
}

void prefetch(const void* address, u32 bytes);
inline void keep(u32&) {}
inline void keep(float&) {}
void let_next_start();
void wait_for_previous();
long long clock();

int cluster_size();
int cluster_rank();
int cluster_index();
void cluster_arrive();
void cluster_wait();
void make_counter(Shared counter);
void expect(Shared counter, u32 bytes);
void send(Shared address, Shared counter, int rank, float value);
inline void send(Shared address, Shared counter, int rank, float2 value) {
    send(address, counter, rank, value.x);
    send(address + 4, counter, rank, value.y);
}
void send_bulk(Shared address, Shared counter, const u8* from, u32 bytes, CODEGEMM_SITE);
void wait_for_sent(Shared counter, u32 parity = 0);

u32 arrive(u32* counter);
void sync_block();
void sync_warp();
u32 shuffle_bits(u32 value, int source);
u32 ballot(bool predicate);

template <class T>
T shuffle(T value, int source) {
    static_assert(sizeof(T) == 4);
    u32 bits;
    memcpy(&bits, &value, 4);
    bits = shuffle_bits(bits, source);
    memcpy(&value, &bits, 4);
    return value;
}

template <class T>
T shuffle_xor(T value, int mask) {
    return shuffle(value, lane() ^ mask);
}

inline u32 and_or(u32 value, u32 mask, u32 bits) {
    return (value & mask) | bits;
}
inline u32 xor_and(u32 a, u32 b, u32 mask) {
    return (a ^ b) & mask;
}
inline u32 funnel(u32 high, u32 low, int shift) {
    return u32((u64(high) << 32 | low) << shift >> 32);
}
u32 permute_bytes(u32 low, u32 high, u32 selector);
void mma(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1);
void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1);

// Asynchronous products of a warp's 16 rows: they are done when they are waited for, with what registers and shared
// memory hold by then.
struct WgmmaB {
    Shared address;

    static WgmmaB at(Shared address) { return {address}; }
    WgmmaB behind(int bytes) const { return {address + bytes}; }
};
void begin_wgmma();
void end_wgmma();
void await_wgmma(int count);
void multiply_wgmma(float* d, const u32* a, Shared b, int columns);
template <int COUNT>
void wait_wgmma() {
    await_wgmma(COUNT);
}
template <int COUNT>
void wgmma(float (&d)[COUNT], const u32 (&a)[4], WgmmaB b) {
    multiply_wgmma(d, a, b.address, 2 * COUNT);
}

u32 add_half2(u32 a, u32 b);
u32 fma_half2(u32 a, u32 b, u32 c);
u32 pack_half2(float low, float high);
float half_to_float(u16 value);
u16 float_to_half(float value);
u16 float_to_bfloat(float value);
int round_to_int(float value);
float bits_to_float(u32 bits);
u32 float_to_bits(float value);

}  // namespace ptx
