// Walsh-Hadamard transforms in place.
#pragma once

namespace codegemm {

// Sylvester's matrix of order `block`, a power of two, times each `block` of the numbers.
inline void walsh_hadamard(float* x, int length, int block) {
    for (int step = 1; step < block; step *= 2)
        for (int start = 0; start < length; start += 2 * step)
            for (int i = start; i < start + step; ++i) {
                const float low = x[i], high = x[i + step];
                x[i] = low + high;
                x[i + step] = low - high;
            }
}

}  // namespace codegemm
