// The cheapest tail-biting paths through QTIP's trellis; see viterbi.py.
#include <atomic>
#include <cstddef>
#include <limits>

#include "floats.hpp"
#include "parallel.hpp"

namespace codegemm {

struct ViterbiArgs {
    const float* weights;  // [tiles][steps][2]
    const float* pairs;    // [states][2], what each state stands for
    uint16_t* paths;       // [tiles][steps], the states: the result
    float* branches;       // [3 * states], for `pairs` in the order of the search
    float* costs;          // [workers][steps + 1][together][room], of which fewer bits' are the beginning
    int32_t tiles, bits, workers;
};

constexpr int steps = 128;
constexpr int window = 16;   // bits of a state
constexpr int together = 4;  // tiles whose paths are looked for at once, by one pass over `branches` a step
constexpr int room = 4352;   // costs of a tile before a step, and what lies between them

namespace {

using vector = vec<wide>;
constexpr float infinity = std::numeric_limits<float>::infinity();

// A state's last bits, its group, are the first bits of those that may follow it; its first `shift` bits, its choice,
// are what it forgets of the group it came from.
template <int BITS>
class Search {
 public:
    static constexpr int shift = 2 * BITS, choices = 1 << shift, groups = 1 << (window - shift);
    // Costs that a step needs together are `row` apart; where that is too round a number, they would share a few sets
    // of the cache.
    static constexpr int row = groups >> shift, gap = row < 256 ? 0 : 16, size = choices * (row + gap);
    static_assert(size <= room);

    Search(const ViterbiArgs& args, float* costs) : args_(args), costs_(costs) {}

    // States by group, `wide` at a time, and then by choice: pairs and half their squares.
    static void arrange(const float* pairs, float* branches) {
        for (int block = 0; block < groups; block += wide)
            for (int choice = 0; choice < choices; ++choice, branches += 3 * wide)
                for (int lane = 0; lane < wide; ++lane) {
                    const float* pair = pairs + 2 * (choice * groups + block + lane);
                    branches[lane] = pair[0];
                    branches[wide + lane] = pair[1];
                    branches[2 * wide + lane] = (pair[0] * pair[0] + pair[1] * pair[1]) / 2;
                }
    }

    // The first way has free ends and begins in the middle, so that they are far from the tile's ends; where it passes
    // those, the second way begins and ends.
    void run(int first) {
        int overlaps[together];
        for (int t = 0; t < together; ++t) {
            tiles_[t] = first + t < args_.tiles ? first + t : args_.tiles - 1;
            for (int i = 0; i < size; ++i) cost(0, t)[i] = 0;
        }
        forward(steps / 2);
        for (int t = 0; t < together; ++t) {
            int group = cheapest(cost(steps, t));
            for (int step = steps; step > steps / 2;) group = back(--step, steps / 2, t, group) >> shift;
            overlaps[t] = group;
            for (int i = 0; i < size; ++i) cost(0, t)[i] = infinity;
            cost(0, t)[place(group)] = 0;
        }
        forward(0);
        for (int t = 0; t < together; ++t) {
            uint16_t* path = args_.paths + size_t(tiles_[t]) * steps;
            int group = overlaps[t];
            for (int step = steps; step-- > 0; group = path[step] >> shift) path[step] = back(step, 0, t, group);
        }
    }

 private:
    // Half the squared error of the best ways of a tile to each group, before a step.
    float* cost(int step, int t) { return costs_ + (size_t(step) * together + t) * size; }
    static int place(int group) { return group + group / row * gap; }

    const float* weights(int step, int offset, int t) {
        return args_.weights + (size_t(tiles_[t]) * steps + (step + offset) % steps) * 2;
    }

    // What the best ways to states cost, given those to the group they are entered from; but for half the square of the
    // weights, which all have in common.
    static vector way(float from, const float* branch, vector first, vector second) {
        return load<wide>(branch + 2 * wide) + from - first * load<wide>(branch) - second * load<wide>(branch + wide);
    }

    void forward(int offset) {
        for (int step = 0; step < steps; ++step) {
            vector first[together], second[together];
            for (int t = 0; t < together; ++t) {
                const float* pair = weights(step, offset, t);
                first[t] = vector{} + pair[0];
                second[t] = vector{} + pair[1];
            }
            const float* branch = args_.branches;
            for (int block = 0; block < groups; block += wide) {
                vector least[together];
                for (int t = 0; t < together; ++t) least[t] = vector{} + infinity;
                const float* from = cost(step, 0) + (block >> shift);
                for (int choice = 0; choice < choices; ++choice, branch += 3 * wide)
                    for (int t = 0; t < together; ++t) {
                        const vector now = way(from[t * size + choice * (row + gap)], branch, first[t], second[t]);
                        least[t] = now < least[t] ? now : least[t];
                    }
                for (int t = 0; t < together; ++t)
                    store<wide>(cost(step + 1, t) + place(block),
                                least[t] + (first[t] * first[t] + second[t] * second[t]) / 2.f);
            }
        }
    }

    // The state by which the best way to a group came there in a step.
    int back(int step, int offset, int t, int group) {
        const float* pair = weights(step, offset, t);
        const vector first = vector{} + pair[0], second = vector{} + pair[1];
        const int lane = group % wide;
        const float* branch = args_.branches + size_t(group - lane) * choices * 3;
        float least = infinity;
        int best = 0;
        for (int choice = 0; choice < choices; ++choice, branch += 3 * wide) {
            const int state = choice * groups + group;
            const float now = way(cost(step, t)[place(state >> shift)], branch, first, second)[lane];
            if (now < least) {
                least = now;
                best = state;
            }
        }
        return best;
    }

    static int cheapest(const float* costs) {
        int best = 0;
        for (int group = 1; group < groups; ++group)
            if (costs[place(group)] < costs[place(best)]) best = group;
        return best;
    }

    const ViterbiArgs& args_;
    float* costs_;
    int tiles_[together];
};

template <int BITS>
void search(ParallelFor loop, const ViterbiArgs& a) {
    Search<BITS>::arrange(a.pairs, a.branches);
    constexpr size_t size = size_t(steps + 1) * together * room;
    std::atomic<int> next{0};
    parallel_for(loop, a.workers, [&](int worker) {
        Search<BITS> search(a, a.costs + worker * size);
        for (int first; (first = next.fetch_add(together)) < a.tiles;) search.run(first);
    });
}

}  // namespace
}  // namespace codegemm

extern "C" void viterbi(codegemm::ParallelFor loop, const codegemm::ViterbiArgs* args) {
    using namespace codegemm;
    if (args->bits == 2)
        search<2>(loop, *args);
    else if (args->bits == 3)
        search<3>(loop, *args);
    else
        search<4>(loop, *args);
}
