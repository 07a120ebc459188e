// One ucontext fiber a CUDA thread. A fiber runs until it has to wait for others: at a barrier of the block, or at an
// instruction that its whole warp executes together; then the next one goes on. Threads run in the order asked for, so
// that whatever relies on another order goes wrong; and shared memory remembers who touched it since the last barrier,
// so that a missing one is reported even where the result happens to be right.
#include "emulator.hpp"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr int lanes = 32;
constexpr size_t stack_bytes = 256 << 10;
constexpr size_t kept_fibers = 1 << 15;  // of which each has touched some pages of its stack
constexpr int nobody = -1, several = -2;

// Of other warps, before how many of their synchronisations what they stored is seen.
using Known = std::map<int, int>;

void learn(Known& known, const Known& more) {
    for (const auto& [warp, syncs] : more) known[warp] = std::max(known[warp], syncs);
}

// A copy into shared memory that is under way.
struct Copy {
    u8* to;
    u8 value[16];
    int bytes;
    Site site;
};

enum class State { ready, at_block_barrier, at_cluster_barrier, at_counter, at_warp, done };

// A product of wgmma that is under way, as one lane has it.
struct Wgmma {
    float* d;
    const u32* a;
    const u8* b;
    int columns;
};

// Stacks come from the system, and go back there: among other memory of those sizes they would leave gaps.
struct Unmap {
    void operator()(char* memory) const { munmap(memory, stack_bytes); }
};

// A stack, and where on it a thread goes on: at its beginning, or where it was left. It is kept for the next launch's
// thread as soon as this one's is done.
struct Fiber {
    ucontext_t context;
    jmp_buf left;
    bool has_begun = false, is_free = false;
    std::unique_ptr<char, Unmap> memory;
    const void* stack = nullptr;
    size_t stack_bytes = 0;
    void* fake_stack = nullptr;
};

struct Thread {
    State state = State::ready;  // first: it is what is looked at most
    int block, index;
    Index block_index;
    Fiber* fiber = nullptr;
    const char* operation = nullptr;  // that the warp executes together
    void* operand = nullptr;
    int syncs = 0;                              // of its warp
    bool lets_next = false;                     // kernel start
    bool waited = false;                        // for the kernel before
    bool multiplies = false;                    // between a beginning and an end of wgmma
    std::vector<std::vector<Copy>> copies{1};   // in groups, the last of them open
    std::vector<std::vector<Wgmma>> under_way;  // in groups, the last of them open
    Known known;
    int cluster_arrivals = 0, cluster_waits = 0;
    const u8* counter = nullptr;          // that it waits at
    u32 parity = 0;                       // of the phase that it waits for there
    std::map<const u8*, int> waited_for;  // phases of counters
};

// The last to write or to read a word of shared memory, and after how many barriers: of the block and of its warp.
struct Touch {
    int thread = nobody, warp = nobody, interval = -1, syncs = 0;

    bool concurrent(int block_interval) const;
    void update(int block_interval, bool shared);
};

struct Word {
    Touch write, read;
    bool is_bulk = false;         // what threads store, wgmma doesn't see without a fence, which no kernel has
    const u8* counter = nullptr;  // of what was sent here
    int phase = 0;                // of the counter
};

// Of what is sent to a block.
struct Counter {
    u64 expected = 0, sent = 0;
    bool is_known = false;  // how much is expected
    int phase = 0;

    void count(u64 bytes) {
        sent += bytes;
        if (!is_known || sent < expected) return;
        expected = sent = 0;
        is_known = false;
        phase++;
    }
};

struct Free {
    void operator()(void* memory) const { free(memory); }
};

struct Block {
    std::unique_ptr<u8, Free> shared;
    std::vector<Word> words;
    int interval = 0;    // block barriers passed
    int at_barrier = 0;  // threads that wait there
};

struct Counts {
    u64 instructions = 0, wavefronts = 0, least_wavefronts = 0, sectors = 0, least_sectors = 0, bytes = 0;
};

using Key = std::tuple<std::string, std::string, Space, Kind>;

struct Access {
    const u8* address[lanes];
    u32 active = 0;
    int bytes = 0;
};

// The accesses of a warp at one place in the source: the i-th of every lane together are one instruction. It is counted
// as soon as no lane is missing.
struct Pending {
    Counts* counts = nullptr;
    std::vector<Access> accesses;  // that are not counted, behind `counted` others
    size_t counted = 0;
    size_t reached[lanes] = {};
};

struct SiteKey {
    const char* file;
    int line;
    Space space;
    Kind kind;

    bool operator==(const SiteKey& o) const {
        return std::tie(file, line, space, kind) == std::tie(o.file, o.line, o.space, o.kind);
    }
};

struct SiteHash {
    size_t operator()(const SiteKey& key) const {
        return size_t(key.file) + 4 * key.line + 2 * int(key.space) + int(key.kind);
    }
};

Launch launch;
std::vector<Thread> threads;
std::vector<Block> blocks;
std::vector<int> met;                                                 // by warp: lanes that wait for the others
std::vector<std::unordered_map<SiteKey, Pending, SiteHash>> pending;  // by warp
std::unordered_map<const void*, std::pair<int, int>> written;  // global: thread, its warp's synchronisations then
std::unordered_map<const void*, Known> released;               // by whoever counted there
std::unordered_map<const u8*, Counter> counters;               // by their places in shared memory
std::map<Key, Counts> counts;
std::unordered_map<const char*, u64> events;  // by their names, of which there may be several copies
Kernel kernel;
void** arguments;
std::vector<std::unique_ptr<Fiber>> fibers;
Fiber scheduler;
Thread* current;
std::string complaint, text;

// All threads in the order asked for; those run that are ready. In order, or in reverse, a warp goes on until it waits
// for other warps: what it needs stays in caches.
struct Sweep {
    std::vector<int> order;
    size_t place = 0;
    bool again = false;                            // whether a lane of this warp is ready anew
    bool is_shuffled = false, is_stalled = false;  // stalled: none ran in the sweep before
    bool ran = false, any_left = false, any_at_block = false, any_at_cluster = false;
    std::mt19937 random;

    void begin() {
        if (is_shuffled) std::shuffle(order.begin(), order.end(), random);
        place = 0;
        again = ran = any_left = any_at_block = any_at_cluster = false;
    }

    void pass(State state) {
        any_left = any_left || state != State::done;
        any_at_block = any_at_block || state == State::at_block_barrier;
        any_at_cluster = any_at_cluster || state == State::at_cluster_barrier || state == State::at_counter;
    }

    // The next one that runs; nullptr at the end.
    Thread* next() {
        for (;;) {
            if (place % lanes == 0 && again) {
                again = false;
                place -= lanes;
            }
            if (place == order.size()) return nullptr;
            Thread& thread = threads[order[place++]];
            // Shuffled, threads also overtake each other: half of them sit out a turn.
            if (thread.state == State::ready && (!is_shuffled || is_stalled || random() % 2)) {
                ran = true;
                return &thread;
            }
            pass(thread.state);
        }
    }
} sweep;

#if defined(__SANITIZE_ADDRESS__)
void switch_to(Fiber& from, Fiber& to) {
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
    swapcontext(&from.context, &to.context);
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}
#else
// By swapcontext only to begin: every call of it calls the system for the mask of signals.
void switch_to(Fiber& from, Fiber& to) {
    if (_setjmp(from.left)) return;
    if (to.has_begun) _longjmp(to.left, 1);
    from.has_begun = to.has_begun = true;
    swapcontext(&from.context, &to.context);
}
#endif

// From one fiber to the next that runs.
void hand_over(Fiber& from) {
    Thread* next = complaint.empty() ? sweep.next() : nullptr;
    if (next) {
        current = next;
        threadIdx = {u32(next->index), 0, 0};
        blockIdx = next->block_index;
    }
    Fiber& to = next ? *next->fiber : scheduler;
    if (&from != &to) switch_to(from, to);
}

void yield() {
    Thread& mine = *current;
    sweep.pass(mine.state);
    hand_over(*mine.fiber);
}

void body() {
#if defined(__SANITIZE_ADDRESS__)
    const void* stack;
    size_t stack_bytes;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &stack_bytes);
    if (!scheduler.stack) scheduler.stack = stack, scheduler.stack_bytes = stack_bytes;
#endif
    for (;;) {
        kernel(arguments);
        if (launch.awaited[0][1] && !current->waited) complain("a thread ended before it waited for the kernel before");
        if (!current->under_way.empty()) complain("a thread ended before it waited for its products");
        for (const auto& group : current->copies)
            if (!group.empty()) complain("a thread ended before it waited for its copies");
        current->state = State::done;
#if !defined(__SANITIZE_ADDRESS__)  // which has to be told anew where the scheduler's stack is
        current->fiber->is_free = true;
#endif
        yield();
    }
}

// For a new thread; what others left unfinished begins anew.
Fiber* fiber(size_t index) {
    if (fibers.size() <= index) fibers.resize(index + 1);
    std::unique_ptr<Fiber>& kept = fibers[index];
    if (!kept || !kept->is_free) {
        kept = std::make_unique<Fiber>();
        void* memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        kept->memory.reset(static_cast<char*>(memory));
        kept->stack = kept->memory.get();
        kept->stack_bytes = stack_bytes;
        getcontext(&kept->context);
        kept->context.uc_stack.ss_sp = kept->memory.get();
        kept->context.uc_stack.ss_size = kept->stack_bytes;
        kept->context.uc_link = nullptr;
        makecontext(&kept->context, body, 0);
    }
    kept->is_free = false;
    return kept.get();
}

// Different numbers in ascending order: those that lanes touch, in units of so many bytes.
struct Touched {
    u64 numbers[lanes * 4];
    u64* end = numbers;

    Touched(const Access& access, int first, int last, int unit) {
        for (int lane = first; lane < last; lane++)
            for (int byte = 0; access.active >> lane & 1 && byte < access.bytes; byte += unit)
                *end++ = (u64(access.address[lane]) + byte) / unit;
        if (!std::is_sorted(numbers, end)) std::sort(numbers, end);
        end = std::unique(numbers, end);
    }

    size_t size() const { return end - numbers; }
};

// Distinct 4-byte words that fall into the busiest bank.
int bank_conflict(const Access& access, int first, int end) {
    const Touched words(access, first, end, 4);
    int banks[32] = {};
    for (const u64* word = words.numbers; word != words.end; word++) banks[*word % 32]++;
    return *std::max_element(banks, banks + 32);
}

// 32-bit accesses are served a warp at a time, 64-bit ones a half and 128-bit ones a quarter at a time.
int wavefronts(const Access& access) {
    const int together = access.bytes <= 4 ? 32 : access.bytes == 8 ? 16 : 8;
    int sum = 0;
    for (int first = 0; first < lanes; first += together) sum += bank_conflict(access, first, first + together);
    return sum;
}

void settle(Counts& c, Space space, const Access& access) {
    c.instructions++;
    c.bytes += __builtin_popcount(access.active) * access.bytes;
    const int piece = std::min(access.bytes, 4);
    const Touched pieces(access, 0, lanes, piece);
    if (space == Space::shared) {
        c.wavefronts += wavefronts(access);
        c.least_wavefronts += (pieces.size() * piece + 127) / 128;
    } else {
        u64 before = ~u64(0);
        for (const u64* at = pieces.numbers; at != pieces.end; at++) {
            const u64 sector = *at * piece / 32;
            c.sectors += sector != before;
            before = sector;
        }
        c.least_sectors += (pieces.size() * piece + 31) / 32;
    }
}

void settle(Pending& place, Space space) {
    for (const Access& access : place.accesses) settle(*place.counts, space, access);
    place.counted += place.accesses.size();
    place.accesses.clear();
}

// What only some of a warp's lanes came to.
void settle_all() {
    for (auto& warp : pending)
        for (auto& [key, place] : warp) settle(place, key.space);
}

Counts& counts_of(Space space, Kind kind, const Site& site) {
    const std::string file = site.file, function = site.function;
    return counts[{file.substr(file.rfind('/') + 1), function.substr(0, function.find('<')), space, kind}];
}

// Whether nothing orders that access before one by the current thread.
bool Touch::concurrent(int block_interval) const {
    if (interval != block_interval || thread == current->index) return false;
    return warp != current->index / lanes || syncs == current->syncs;
}

// shared: with whoever it was before.
void Touch::update(int block_interval, bool shared) {
    const int mine = current->index / lanes;
    warp = shared && warp != mine ? several : mine;
    thread = shared ? several : current->index;
    interval = block_interval;
    syncs = current->syncs;
}

void race(const char* what, const void* address, int other) {
    const Block& block = blocks[current->block];
    complain("%s at byte %d of shared memory by threads %d and %d with no barrier between them", what,
             int((const u8*)address - block.shared.get()), other, current->index);
}

void check_shared(Kind kind, const void* address, int bytes) {
    Block& block = blocks[current->block];
    const auto offset = (const u8*)address - block.shared.get();
    if (offset < 0 || offset + bytes > launch.shared_bytes)
        return complain("shared memory of %d bytes accessed at byte %d", launch.shared_bytes, int(offset));
    if (offset % bytes)
        return complain("misaligned access of %d bytes at byte %d of shared memory", bytes, int(offset));
    for (auto at = offset / 4; at < (offset + bytes + 3) / 4; at++) {
        Word& word = block.words[at];
        if (word.counter && current->waited_for[word.counter] <= word.phase)
            return complain("byte %d of shared memory touched before all that other blocks send has come", int(offset));
        const bool fresh_write = word.write.concurrent(block.interval);
        const bool fresh_read = word.read.concurrent(block.interval);
        if (kind == Kind::load) {
            if (word.write.thread == nobody)
                return complain("shared memory read at byte %d before it was written", int(offset));
            if (fresh_write) return race("write and read", address, word.write.thread);
            word.read.update(block.interval, fresh_read);
        } else {
            if (fresh_write) return race("two writes", address, word.write.thread);
            if (fresh_read) return race("read and write", address, word.read.thread);
            word.write.update(block.interval, false);
            word.is_bulk = false;
        }
    }
}

int warp_of(const Thread& thread) {
    return int(&thread - threads.data()) / lanes;
}

// The lanes of a warp meet; the last to come computes for all. `all` has their operands.
template <class Operand, class Compute>
void together(const char* operation, Operand& operand, Compute compute) {
    Thread* warp = current - current->index % lanes;
    current->operation = operation;
    current->operand = &operand;
    current->state = State::at_warp;
    int& came = met[warp_of(*current)];
    if (++came < lanes) return yield();
    came = 0;
    Operand* all[lanes];
    for (int lane = 0; lane < lanes; lane++) {
        if (warp[lane].operation != operation && strcmp(warp[lane].operation, operation))
            complain("lanes of a warp meet at %s and %s", warp[lane].operation, operation);
        all[lane] = static_cast<Operand*>(warp[lane].operand);
        warp[lane].state = State::ready;
    }
    events[operation]++;
    compute(all);
    sweep.again = !sweep.is_shuffled;
    yield();  // so that lanes go on in the order of the schedule
}

void release_blocks() {
    for (size_t b = 0; b < blocks.size(); b++) {
        if (blocks[b].at_barrier < launch.threads) continue;
        blocks[b].at_barrier = 0;
        blocks[b].interval++;
        events["block barrier"]++;
        Thread* first = &threads[b * launch.threads];
        for (int t = 0; t < launch.threads; t++) first[t].state = State::ready;
    }
}

// Blocks of a cluster lie along the grid's last axis.
int cluster_stride() {
    return launch.grid_x * (launch.grid_z > 1 ? launch.grid_y : 1);
}

int rank_of(int block) {
    return block / cluster_stride() % launch.cluster;
}

int peer_of(int block, int rank) {
    return block + (rank - rank_of(block)) * cluster_stride();
}

void release_clusters() {
    std::vector<int> arrivals(blocks.size(), 1 << 30);  // of each block's thread that is last
    for (const Thread& thread : threads)
        arrivals[thread.block] = std::min(arrivals[thread.block], thread.cluster_arrivals);
    for (Thread& thread : threads) {
        if (thread.state == State::at_counter) {
            const Counter& counter = counters[thread.counter];
            if ((counter.phase & 1) != int(thread.parity)) thread.state = State::ready;
        }
        if (thread.state != State::at_cluster_barrier) continue;
        bool all = true;
        for (int rank = 0; rank < launch.cluster; rank++)
            all = all && arrivals[peer_of(thread.block, rank)] >= thread.cluster_waits;
        if (all) thread.state = State::ready;
    }
}

std::string stuck() {
    int done = 0, barrier = 0, cluster = 0, warp = 0;
    for (const Thread& thread : threads) {
        done += thread.state == State::done;
        barrier += thread.state == State::at_block_barrier;
        cluster += thread.state == State::at_cluster_barrier || thread.state == State::at_counter;
        warp += thread.state == State::at_warp;
    }
    return "threads wait for each other: " + std::to_string(barrier) + " at a barrier, " + std::to_string(cluster) +
           " for their cluster, " + std::to_string(warp) + " for their warp, " + std::to_string(done) +
           " have finished";
}

}  // namespace

void complain(const char* format, ...) {
    if (!complaint.empty()) return;
    char buffer[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, sizeof buffer, format, arguments);
    va_end(arguments);
    complaint = buffer;
    yield();  // never resumed
}

// Gives back what only a launch needs: libraries stay loaded, each with its own.
struct AtEnd {
    ~AtEnd() {
        std::vector<Thread>().swap(threads);
        decltype(blocks)().swap(blocks);
        decltype(pending)().swap(pending);
        decltype(written)().swap(written);
        if (fibers.size() > kept_fibers) fibers.resize(kept_fibers);
    }
};

const char* run(const Launch& asked, Kernel asked_kernel, void** asked_arguments) {
    const AtEnd at_end;
    launch = asked;
    kernel = asked_kernel;
    arguments = asked_arguments;
    complaint.clear();
    written.clear();
    released.clear();
    counters.clear();
    gridDim = {u32(launch.grid_x), u32(launch.grid_y), u32(launch.grid_z)};
    blockDim = {u32(launch.threads), 1, 1};
    const int block_count = launch.grid_x * launch.grid_y * launch.grid_z;
    blocks.clear();
    blocks.resize(block_count);
    for (Block& block : blocks) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 1024, launch.shared_bytes)) return "out of memory";
        block.shared.reset(static_cast<u8*>(memory));
        memset(block.shared.get(), 0xff, launch.shared_bytes);
        block.words.assign((launch.shared_bytes + 3) / 4, {});
    }
    met.assign(block_count * launch.threads / lanes, 0);
    pending.clear();
    pending.resize(met.size());
    threads.clear();
    threads.resize(block_count * launch.threads);
    sweep.order.resize(threads.size());
    for (size_t i = 0; i < threads.size(); i++) {
        Thread& thread = threads[i];
        thread.block = int(i) / launch.threads;
        thread.index = int(i) % launch.threads;
        const u32 block = u32(thread.block), rest = block / gridDim.x;
        thread.block_index = {block % gridDim.x, rest % gridDim.y, rest / gridDim.y};
        thread.fiber = fiber(i);
        sweep.order[i] = Order(launch.order) == Order::reversed ? int(threads.size() - 1 - i) : int(i);
    }
    sweep.random.seed(launch.seed);
    sweep.is_shuffled = Order(launch.order) == Order::shuffled;
    sweep.is_stalled = false;
    scheduler.stack = nullptr;  // of whichever thread calls
    for (;;) {
        sweep.begin();
        hand_over(scheduler);
        if (!complaint.empty()) return complaint.c_str();
        if (!sweep.any_left) break;
        if (sweep.any_at_block) release_blocks();
        if (sweep.any_at_cluster) release_clusters();
        if (!sweep.ran && sweep.is_stalled) {
            bool any = false;
            for (const Thread& thread : threads) any = any || thread.state == State::ready;
            if (!any) return (complaint = stuck()).c_str();
        }
        sweep.is_stalled = !sweep.ran;
    }
    settle_all();
    return nullptr;
}

const char* emulator_report() {
    text.clear();
    for (const auto& [key, c] : counts) {
        const auto& [file, function, space, kind] = key;
        char line[400];
        snprintf(line, sizeof line, "%s %s %s %s %llu %llu %llu %llu %llu %llu\n", file.c_str(), function.c_str(),
                 space == Space::shared ? "shared" : "global", kind == Kind::load ? "load" : "store", c.instructions,
                 c.wavefronts, c.least_wavefronts, c.sectors, c.least_sectors, c.bytes);
        text += line;
    }
    std::map<std::string, u64> named;
    for (const auto& [event, count] : events) named[event] += count;
    for (const auto& [event, count] : named) text += event + " " + std::to_string(count) + "\n";
    counts.clear();
    events.clear();
    return text.c_str();
}

void access(Space space, Kind kind, const void* address, int bytes, Site site) {
    if (space == Space::shared) {
        check_shared(kind, address, bytes);
    } else {
        if (u64(address) % bytes) complain("misaligned access of %d bytes in %s", bytes, site.function);
        if (!current->waited)
            for (const auto& [begin, end] : launch.awaited)
                if (u64(address) >= begin && u64(address) < end)
                    complain("x, y or the workspace touched in %s before the kernel waited for the one before",
                             site.function);
        if (kind == Kind::store)
            for (int byte = 0; byte < bytes; byte += 4)
                written[static_cast<const u8*>(address) + byte] = {int(current - threads.data()), current->syncs};
    }
    const int lane = current->index % lanes;
    Pending& place = pending[warp_of(*current)][{site.file, site.line, space, kind}];
    if (!place.counts) place.counts = &counts_of(space, kind, site);
    const size_t instance = place.reached[lane]++ - place.counted;
    if (place.accesses.size() <= instance) place.accesses.resize(instance + 1);
    Access& access = place.accesses[instance];
    access.address[lane] = static_cast<const u8*>(address);
    access.active |= 1u << lane;
    access.bytes = bytes;
    // The last one that lanes came to: they came to those before it, too.
    if (access.active == ~0u && instance + 1 == place.accesses.size()) settle(place, space);
}

void foreign(const void* address) {
    const auto found = written.find(address);
    if (found == written.end()) return complain("a sum of another block read before it was written");
    const auto [writer, syncs] = found->second;
    const int warp = writer / lanes;
    if (&threads[writer] == current || (warp == warp_of(*current) && syncs < current->syncs)) return;
    const auto known = current->known.find(warp);
    if (known == current->known.end() || known->second <= syncs)
        complain("a sum read that its writer's warp has not released behind a synchronisation, or not acquired here");
}

void trip() {
    int nothing = 0;
    together("trip", nothing, [](int**) {});
}

u8* shared_memory() {
    return blocks[current->block].shared.get();
}

}  // namespace emulator

namespace ptx {

using namespace emulator;

int lane() {
    return current->index % lanes;
}
int warp() {
    int nothing = 0;
    together("warp", nothing, [](int**) {});
    return current->index / lanes;
}
int warps() {
    return launch.threads / lanes;
}

// Every look takes a while.
long long clock() {
    static long long now = 0;
    return now += 10000;
}

int cluster_size() {
    return launch.cluster;
}
int cluster_rank() {
    return rank_of(current->block);
}
int cluster_index() {
    return int(gridDim.z > 1 ? blockIdx.z : blockIdx.y) / launch.cluster;
}

void cluster_arrive() {
    if (++current->cluster_arrivals > current->cluster_waits + 1) complain("arrived at a cluster's barrier twice");
}

void cluster_wait() {
    if (++current->cluster_waits > current->cluster_arrivals)
        complain("waited for a cluster and did not arrive before");
    current->state = State::at_cluster_barrier;
    yield();
}

void make_counter(Shared counter) {
    if (current->cluster_arrivals) complain("a counter made after its block has arrived");
    if (u64(counter) % 8) complain("a counter's address is not a multiple of 8");
    counters[counter];
}

void expect(Shared counter, u32 bytes) {
    if (!counters.count(counter)) return complain("bytes expected at what is no counter");
    Counter& there = counters[counter];
    if (there.is_known) return complain("bytes expected before those of the phase before have come");
    there.expected = bytes;
    there.is_known = true;
    there.count(0);
}

// To where other blocks read only behind their counter.
void send(Shared address, Shared counter, int rank, float value) {
    if (!current->cluster_waits) return complain("sent to a block that may not have begun");
    const int there = peer_of(current->block, rank);
    Block& block = blocks[there];
    const auto offset = address - blocks[current->block].shared.get();
    if (rank < 0 || rank >= launch.cluster || offset < 0 || offset + 4 > launch.shared_bytes)
        return complain("sent to byte %d of %d of rank %d", int(offset), launch.shared_bytes, rank);
    u8* counted = block.shared.get() + (counter - blocks[current->block].shared.get());
    if (!counters.count(counted)) return complain("sent to where nobody counts");
    bool ended = true;
    for (int t = 0; t < launch.threads; t++) ended = ended && threads[there * launch.threads + t].state == State::done;
    if (ended) return complain("sent to a block that has ended");
    Word& word = block.words[offset / 4];
    if (word.write.thread != nobody || word.counter) return complain("sent to byte %d, which is in use", int(offset));
    memcpy(block.shared.get() + offset, &value, 4);
    word.write = {several, several, -1, 0};
    word.counter = counted;
    word.phase = counters[counted].phase;
    counters[counted].count(4);
    events["sent"]++;
}

// It is there at once, but nobody may know.
void send_bulk(Shared address, Shared counter, const u8* from, u32 bytes, const char* file, const char* function,
               int line) {
    if (!counters.count(counter)) return complain("sent to where nobody counts");
    if (u64(address) % 16 || u64(from) % 16 || bytes % 16)
        return complain("%u bytes sent that are not pieces of 16", bytes);
    Block& block = blocks[current->block];
    Counter& there = counters[counter];
    for (u32 at = 0; at < bytes; at += 16) {
        const auto first = (address + at - block.shared.get()) / 4;
        for (int i = 0; i < 4; i++)
            block.words[first + i].counter = nullptr;  // others may not have waited for the last
        access(Space::global, Kind::load, from + at, 16, {file, function, line});
        check_shared(Kind::store, address + at, 16);
        for (int i = 0; i < 4; i++) {
            Word& word = block.words[first + i];
            word.write = {several, several, -1, 0};
            word.is_bulk = true;
            word.counter = counter;
            word.phase = there.phase;
        }
    }
    memcpy(address, from, bytes);
    events["bytes sent in bulk"] += bytes;
    there.count(bytes);
}

void wait_for_sent(Shared counter, u32 parity) {
    if (!counters.count(counter)) return complain("waited at what is no counter");
    current->counter = counter;
    current->parity = parity;
    current->state = State::at_counter;
    yield();
    current->waited_for[counter] = counters[counter].phase;
}

// What the warp stored before it last synchronised, and what it knows itself, is released; what others released there
// before is acquired.
u32 arrive(u32* counter) {
    if (!current->waited) complain("counted before the kernel waited for the one before");
    events["atomic"]++;
    Known& there = released[counter];
    learn(there, current->known);
    learn(there, {{warp_of(*current), current->syncs}});
    current->known = there;
    return (*counter)++;
}

void begin_copy(Shared to, const void* from, int bytes, Site site) {
    access(Space::global, Kind::load, from, bytes, site);
    Copy copy{to, {}, bytes, site};
    memcpy(copy.value, from, bytes);
    current->copies.back().push_back(copy);
}

void end_copies() {
    current->copies.emplace_back();
}

void await_copies(int count) {
    while (int(current->copies.size()) > count + 1) {
        for (const Copy& copy : current->copies.front()) {
            access(Space::shared, Kind::store, copy.to, copy.bytes, copy.site);
            memcpy(copy.to, copy.value, copy.bytes);
        }
        current->copies.erase(current->copies.begin());
    }
}

// As a bulk prefetch must have it.
void prefetch(const void* address, u32 bytes) {
    if (u64(address) % 16 || bytes % 16) complain("prefetch of %u bytes that are not pieces of 16", bytes);
}

void let_next_start() {
    current->lets_next = true;
}

void wait_for_previous() {
    if (launch.awaited[0][1] && !current->lets_next)
        complain("a thread waited for the kernel before and has not let the next one start");
    current->waited = true;
}

void sync_block() {
    blocks[current->block].at_barrier++;
    current->state = State::at_block_barrier;
    yield();
}

// All lanes know afterwards what one of them knew.
void sync_warp() {
    current->syncs++;
    Thread* mine = current;
    together("sync_warp", *mine, [](Thread** all) {
        if (std::all_of(all, all + lanes, [](Thread* thread) { return thread->known.empty(); })) return;
        Known known;
        for (int lane = 0; lane < lanes; lane++) learn(known, all[lane]->known);
        for (int lane = 0; lane < lanes; lane++) all[lane]->known = known;
    });
}

u32 shuffle_bits(u32 value, int source) {
    struct Operand {
        u32 value;
        int source;
        u32 result;
    } operand{value, source, 0};
    together("shuffle", operand, [](Operand** all) {
        for (int lane = 0; lane < lanes; lane++) all[lane]->result = all[all[lane]->source % lanes]->value;
    });
    return operand.result;
}

u32 ballot(bool predicate) {
    struct Operand {
        bool predicate;
        u32 result;
    } operand{predicate, 0};
    together("ballot", operand, [](Operand** all) {
        u32 bits = 0;
        for (int lane = 0; lane < lanes; lane++) bits |= u32(all[lane]->predicate) << lane;
        for (int lane = 0; lane < lanes; lane++) all[lane]->result = bits;
    });
    return operand.result;
}

u32 permute_bytes(u32 low, u32 high, u32 selector) {
    const u64 bytes = u64(high) << 32 | low;
    u32 result = 0;
    for (int i = 0; i < 4; i++) result |= u32(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}

// Adds a b to the 16 x 8 numbers that a warp's lanes hold in d, each summed in Sum and then narrowed.
template <class Sum, class Operand, class Number, int depth, class Narrow>
static void add_products(Operand** all, const Number (&a)[16][depth], const Number (&b)[depth][8], Narrow narrow) {
    for (int row = 0; row < 16; row++) {
        const auto d = [&](int column) -> auto& { return all[row % 8 * 4 + column / 2]->d[row / 8 * 2 + column % 2]; };
        Sum sums[8];
        for (int column = 0; column < 8; column++) sums[column] = d(column);
        for (int k = 0; k < depth; k++)
            for (int column = 0; column < 8; column++) sums[column] += a[row][k] * b[k][column];
        for (int column = 0; column < 8; column++) d(column) = narrow(sums[column]);
    }
}

void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    struct Operand {
        u32 a[4], b[2];
        float* d;
    } operand{{a0, a1, a2, a3}, {b0, b1}, d};
    together("mma", operand, [](Operand** all) {
        double a[16][16], b[16][8];
        const auto half = [](u32 pair, int i) { return double(half_to_float(u16(pair >> 16 * i))); };
        for (int lane = 0; lane < lanes; lane++) {
            const int r = lane / 4, q = lane % 4;
            for (int i = 0; i < 8; i++)
                a[r + i / 2 % 2 * 8][2 * q + i % 2 + i / 4 * 8] = half(all[lane]->a[i / 2], i % 2);
            for (int i = 0; i < 4; i++) b[2 * q + i % 2 + i / 2 * 8][r] = half(all[lane]->b[i / 2], i % 2);
        }
        add_products<double>(all, a, b, [](double sum) { return float(sum); });
    });
}

void mma(int (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    struct Operand {
        u32 a[4], b[2];
        int* d;
    } operand{{a0, a1, a2, a3}, {b0, b1}, d};
    together("integer mma", operand, [](Operand** all) {
        int a[16][32], b[32][8];
        for (int lane = 0; lane < lanes; lane++) {
            const int r = lane / 4, q = lane % 4;
            for (int i = 0; i < 16; i++)
                a[r + i / 4 % 2 * 8][4 * q + i % 4 + i / 8 * 16] = u8(all[lane]->a[i / 4] >> 8 * (i % 4));
            for (int i = 0; i < 8; i++) b[4 * q + i % 4 + i / 4 * 16][r] = int8_t(all[lane]->b[i / 4] >> 8 * (i % 4));
        }
        add_products<int64_t>(all, a, b, [](int64_t sum) {
            if (sum != int(sum)) complain("an integer mma left 32 bits");
            return int(sum);
        });
    });
}

void begin_wgmma() {
    current->multiplies = true;
    if (current->under_way.empty() || !current->under_way.back().empty()) current->under_way.emplace_back();
}

void end_wgmma() {
    if (!current->multiplies) complain("a group of wgmma ends that has not begun");
    current->multiplies = false;
}

void multiply_wgmma(float* d, const u32* a, Shared b, int columns) {
    if (!current->multiplies) complain("a wgmma outside of a group");
    current->under_way.back().push_back({d, a, b, columns});
}

// The warp's rows of the product: B [columns / 8][two halves of k][eight columns][eight k].
void finish(Wgmma** all) {
    const auto half = [](u32 pair, int i) { return double(half_to_float(u16(pair >> 16 * i))); };
    const u8* b = all[0]->b;
    const int columns = all[0]->columns;
    const Block& block = blocks[current->block];
    double a[16][16];
    for (int lane = 0; lane < lanes; lane++) {
        if (all[lane]->b != b || all[lane]->columns != columns) complain("lanes of a warp ask for different products");
        for (int i = 0; i < 8; i++)
            a[lane / 4 + i / 2 % 2 * 8][2 * (lane % 4) + i % 2 + i / 4 * 8] = half(all[lane]->a[i / 2], i % 2);
    }
    std::vector<double> x(16 * columns);  // [k][column]
    for (int column = 0; column < columns; column++)
        for (int k = 0; k < 16; k += 2) {
            const u8* from = b + column / 8 * 256 + k / 8 * 128 + column % 8 * 16 + k % 8 * 2;
            check_shared(Kind::load, from, 4);
            if (!block.words[(from - block.shared.get()) / 4].is_bulk) complain("wgmma reads what a thread stored");
            u32 pair;
            memcpy(&pair, from, 4);
            for (int i = 0; i < 2; i++) x[(k + i) * columns + column] = half(pair, i);
        }
    std::vector<double> sums(columns);
    for (int row = 0; row < 16; row++) {
        const auto d = [&](int column) -> float& {
            return all[row % 8 * 4 + column % 8 / 2]->d[column / 8 * 4 + row / 8 * 2 + column % 2];
        };
        for (int column = 0; column < columns; column++) sums[column] = d(column);
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < columns; column++) sums[column] += a[row][k] * x[k * columns + column];
        for (int column = 0; column < columns; column++) d(column) = float(sums[column]);
    }
}

void await_wgmma(int count) {
    if (current->multiplies) complain("a wait for products amidst a group");
    while (int(current->under_way.size()) > count) {
        for (Wgmma& product : current->under_way.front()) together("wgmma", product, finish);
        current->under_way.erase(current->under_way.begin());
    }
}

// By hand: what the compiler calls for it takes several times as long.
float half_to_float(u16 value) {
    const u32 sign = u32(value & 0x8000) << 16, rest = u32(value & 0x7fff) << 13;
    constexpr u32 infinity = 0x7c00 << 13, quiet = 0x200 << 13;
    if (rest >= infinity) return bits_to_float(sign | 0x7f800000 | rest | (rest > infinity ? quiet : 0));
    return bits_to_float(sign | float_to_bits(bits_to_float(rest) * 0x1p112f));
}

u16 float_to_half(float value) {
    const _Float16 half = _Float16(value);
    u16 bits;
    memcpy(&bits, &half, 2);
    return bits;
}

u32 pack_half2(float low, float high) {
    return float_to_half(low) | u32(float_to_half(high)) << 16;
}

u32 add_half2(u32 a, u32 b) {
    return pack_half2(half_to_float(u16(a)) + half_to_float(u16(b)),
                      half_to_float(u16(a >> 16)) + half_to_float(u16(b >> 16)));
}

// Products of two fp16 are exact in double, and so is all of a sum that rounding to fp16 depends on.
u32 fma_half2(u32 a, u32 b, u32 c) {
    const auto half = [](u32 pair, int i) { return double(half_to_float(u16(pair >> 16 * i))); };
    u32 result = 0;
    for (int i = 0; i < 2; i++) {
        const _Float16 sum = _Float16(half(a, i) * half(b, i) + half(c, i));
        u16 bits;
        memcpy(&bits, &sum, 2);
        result |= u32(bits) << 16 * i;
    }
    return result;
}

int round_to_int(float value) {
    if (std::isnan(value)) return 0;
    return int(std::min(std::max(std::nearbyint(double(value)), -2147483648.0), 2147483647.0));
}

u16 float_to_bfloat(float value) {
    const u32 bits = float_to_bits(value);
    if (std::isnan(value)) return 0x7fff;
    return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float bits_to_float(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

u32 float_to_bits(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}

}  // namespace ptx
