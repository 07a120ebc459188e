// A number that the compiler knows, for a lambda's parameter.
#pragma once

template <int VALUE>
struct Constant {
    static constexpr int value = VALUE;
};
