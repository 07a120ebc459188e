// The sums of lookup.hpp against their definition, on random tables and codes; prints what differs.
#include "lookup.hpp"

#include <cstdio>
#include <cstdlib>
#include <vector>

using namespace codegemm;

template <int ENTRIES, int PLANES, int GROUPS>
int wrong(int count) {
    const int pitch = group_rows * GROUPS;
    std::vector<uint8_t> codes(size_t(count) * pitch), tables(size_t(count) * PLANES * ENTRIES, 0xff);
    std::vector<int32_t> entries(size_t(count) * ENTRIES);
    for (auto& code : codes) code = uint8_t(std::rand() % ENTRIES);
    for (auto& entry : entries) entry = std::rand() % (1 << 8 * PLANES);
    for (int p = 0; p < count; ++p)
        store_entries<ENTRIES, PLANES>(
            [&](int i) {
                ints values;
                std::memcpy(&values, &entries[p * ENTRIES + i], sizeof values);
                return values;
            },
            &tables[size_t(p) * PLANES * ENTRIES]);
    std::vector<uint16_t> sums(GROUPS * PLANES * group_rows, 0xffff), truth(sums.size(), 0);
    look_up<ENTRIES, PLANES, GROUPS>(codes.data(), pitch, count, tables.data(), 0, sums.data());
    for (int p = 0; p < count; ++p)
        for (int g = 0; g < GROUPS; ++g)
            for (int plane = 0; plane < PLANES; ++plane)
                for (int row = 0; row < group_rows; ++row) {
                    const int code = codes[p * pitch + g * group_rows + row % 32 * 2 + row / 32];
                    const int entry = entries[p * ENTRIES + code];
                    truth[(g * PLANES + plane) * group_rows + row] += uint8_t(entry >> 8 * plane);
                }
    const bool same = sums == truth;
    if (!same) std::printf("entries %d, planes %d, groups %d, count %d\n", ENTRIES, PLANES, GROUPS, count);
    return !same;
}

template <int ENTRIES>
int wrong() {
    int sum = 0;
    for (int count : {1, 2, 31, 32, 256})
        sum += wrong<ENTRIES, 1, 1>(count) + wrong<ENTRIES, 1, 4>(count) + wrong<ENTRIES, 2, 1>(count) +
               wrong<ENTRIES, 2, 4>(count);
    return sum;
}

int main(int, char** arguments) {
    std::srand(unsigned(std::atoi(arguments[1])));
    return wrong<16>() + wrong<64>() + wrong<256>();
}
