// Reads memory as fast as the processor can: the yardstick for every kernel.
#include "floats.hpp"
#include "parallel.hpp"

// sums[i] of the floats of piece i; `count` floats in `pieces` equal pieces, a multiple of 4 * lanes each.
extern "C" void stream_read(codegemm::ParallelFor loop, const float* data, long count, int pieces, float* sums) {
    using namespace codegemm;
    const long size = count / pieces;
    parallel_for(loop, pieces, [&](int piece) {
        vec<lanes> sum0{}, sum1{}, sum2{}, sum3{};
        const float* from = data + piece * size;
        for (const float* end = from + size; from < end; from += 4 * lanes) {
            sum0 += load<lanes>(from), sum1 += load<lanes>(from + lanes);
            sum2 += load<lanes>(from + 2 * lanes), sum3 += load<lanes>(from + 3 * lanes);
        }
        const vec<lanes> sum = (sum0 + sum1) + (sum2 + sum3);
        sums[piece] = 0;
        for (int i = 0; i < lanes; ++i) sums[piece] += sum[i];
    });
}
