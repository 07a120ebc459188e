"""The emulator itself: its instructions against the PTX manual's definitions, its complaints, its counters."""

import numpy as np
import pytest
from emulator import emulate

LANE = np.arange(32)
# The manual's tables of fragments: groupID and threadID_in_group.
GROUP, THREAD = LANE // 4, LANE % 4


def launch(instance, data, results, threads=32, shared=8192, order="forward"):
    out = np.full(results, 0xABABABAB, np.uint32)
    report = emulate.launch(
        "semantics.cu", instance, (1, 1), (threads,), shared, [data, out], order, folder=emulate.HERE
    )
    return out, report


def halves(rng, *shape):
    return rng.standard_normal(shape).astype(np.float16)


def words(array):
    return np.ascontiguousarray(array).view(np.uint32)


@pytest.mark.parametrize("instance", ["mma", "integer_mma"])
@pytest.mark.parametrize("order", emulate.ORDERS)
def test_emulated_mma_has_the_manuals_fragments(order, instance, rng):
    """m16n8k16 of fp16 and m16n8k32 of 8-bit integers; a register has two of the ones, four of the others."""
    if instance == "mma":
        each, a, b = 2, halves(rng, 16, 16), halves(rng, 16, 8)
        c = stored = rng.standard_normal((16, 8)).astype(np.float32)
    else:
        each, a, b = 4, rng.integers(0, 256, (16, 32), np.uint8), rng.integers(-128, 128, (32, 8), np.int8)
        stored = rng.integers(-(1 << 31), 1 << 31, (16, 8), np.int32)
        c = stored >> 4  # as the instance has it, lest sums leave 32 bits
    # a_i: row = groupID, + 8 in every second register; column = threadID * each + its place in the register,
    # + 4 * each in the registers from the third on
    i = np.arange(4 * each)
    rows = GROUP[:, None] + i // each % 2 * 8
    a_words = words(a[rows, THREAD[:, None] * each + i % each + i // (2 * each) * 4 * each])
    # b_i: row = threadID * each + its place in the register, + 4 * each in the second; column = groupID
    i = np.arange(2 * each)
    b_words = words(b[THREAD[:, None] * each + i % each + i // each * 4 * each, GROUP[:, None]])
    # c_i: row = groupID, + 8 for i >= 2; column = threadID * 2 + (i & 1)
    i = np.arange(4)
    place = GROUP[:, None] + i // 2 * 8, THREAD[:, None] * 2 + (i & 1)
    data = np.concatenate([a_words.T, b_words.T, words(stored[place]).T]).copy()
    out, _ = launch(instance, data, (4, 32), order=order)
    d = np.full((16, 8), np.nan)
    d[place] = out.view(c.dtype).T
    if instance == "mma":
        assert np.allclose(d, a.astype(np.float64) @ b.astype(np.float64) + c, rtol=1e-6, atol=1e-6)
    else:
        assert np.array_equal(d, a.astype(np.int64) @ b.astype(np.int64) + c)


def test_emulated_shuffles_and_ballot(rng):
    values = rng.integers(0, 1 << 32, 32, np.uint32)
    sources = rng.integers(0, 32, 32, np.uint32)
    out, _ = launch("exchange", np.concatenate([values, sources]), (3, 32), order="shuffled")
    assert np.array_equal(out[0], values[sources])
    assert np.array_equal(out[1], values[LANE ^ 5])
    assert np.all(out[2] == np.sum((values % 2).astype(np.uint64) << LANE.astype(np.uint64)))


def test_emulated_permute_picks_bytes_as_prmt_does(rng):
    data = rng.integers(0, 1 << 32, (2, 32), np.uint32)
    out, _ = launch("permute", data, (5, 32))
    both = np.concatenate([data[0][:, None], data[1][:, None]], axis=1).view(np.uint8)  # bytes 0 .. 7 of {b, a}
    for row, selector in enumerate((0x3340, 0x3372, 0x7654, 0x0123, 0x1616)):
        picked = both[:, [selector >> 4 * i & 7 for i in range(4)]]
        assert np.array_equal(out[row], words(picked).ravel())


def test_emulated_conversions(rng):
    pairs = halves(rng, 2, 32, 2)
    floats = (rng.standard_normal((2, 32)) * 10.0 ** rng.integers(-8, 6, (2, 32))).astype(np.float32)
    floats[0, :4] = np.inf, -np.inf, 65519.9, 65520
    out, _ = launch("convert", np.concatenate([words(pairs).reshape(2, 32), words(floats)]), (5, 32))
    import ml_dtypes

    with np.errstate(over="ignore"):
        assert np.array_equal(out[0], words(pairs[0] + pairs[1]).ravel())
        assert np.array_equal(out[1], words(floats.T.astype(np.float16)).ravel())
        assert np.array_equal(out[2].astype(np.uint16), floats[0].astype(np.float16).view(np.uint16))
        assert np.array_equal(out[3].astype(np.uint16), floats[0].astype(ml_dtypes.bfloat16).view(np.uint16))
    assert np.array_equal(out[4].view(np.float32), pairs[0, :, 0].astype(np.float32))


def test_emulated_multiply_add_rounds_once(rng):
    factors, more = halves(rng, 2, 32, 2), halves(rng, 32, 2)
    more[:16] = -(factors[0, :16] * factors[1, :16])  # what is left is what rounding the product would lose
    out, _ = launch("multiply_add", words(np.concatenate([factors, more[None]])), 32)
    exact = factors[0].astype(np.float64) * factors[1] + more
    assert np.array_equal(out, words(exact.astype(np.float16)).ravel())
    assert np.any(exact[:16])


def test_emulated_bits_are_merged(rng):
    value, mask, bits = data = rng.integers(0, 1 << 32, (3, 32), np.uint32)
    out, _ = launch("merge_bits", data, (2, 32))
    assert np.array_equal(out, [value & mask | bits, (value ^ mask) & bits])


def test_emulated_rounding_to_integers():
    values = np.array([0.5, 1.5, -2.5, 2.49, 3e9, -3e9, np.inf, -np.inf, np.nan, -7.6, *range(22)], np.float32)
    out, _ = launch("round", words(values), 32)
    last = [2**31 - 1, -(2**31)]
    assert np.array_equal(out.view(np.int32), [0, 2, -2, 2, *last, *last, 0, -8, *range(22)])


@pytest.mark.parametrize("order", emulate.ORDERS)
def test_emulated_barrier_and_atomics(order, rng):
    values = rng.integers(0, 1 << 32, 96, np.uint32)
    out, report = launch("mirror", values, 97, threads=96, order=order)
    assert np.array_equal(out[:96], values[::-1])
    assert out[96] == np.uint32(0xABABABAB + 96)
    assert report.events == {"atomic": 96, "block barrier": 1}


@pytest.mark.parametrize("order", emulate.ORDERS)
def test_emulated_barrier_of_a_warp(order, rng):
    values = rng.integers(0, 1 << 31, 96, np.uint32)
    out, _ = launch("mirror_in_warp", values, 96, threads=96, order=order)
    assert np.array_equal(out.reshape(3, 32), values.reshape(3, 32)[:, ::-1] + np.uint32(1))


@pytest.mark.parametrize(
    ("instance", "complaint"),
    [
        ("warps_without_barrier", "with no barrier between them|before it was written"),
        ("mirror_without_barrier", "with no barrier between them|before it was written"),
        (
            "half_a_barrier",
            "threads wait for each other: 32 at a barrier, 0 for their cluster, 0 for their warp, 32 have finished",
        ),
        (
            "one_lane_asks",
            "threads wait for each other: 62 at a barrier, 0 for their cluster, 2 for their warp, 0 have finished",
        ),
        ("different_instructions", "lanes of a warp meet at (ballot and shuffle|shuffle and ballot)"),
        ("beyond_shared_memory", "shared memory of 256 bytes accessed at byte 256"),
        ("unwritten_shared_memory", "shared memory read at byte 0 before it was written"),
        ("misaligned", "misaligned access of 8 bytes in misaligned"),
    ],
)
@pytest.mark.parametrize("order", emulate.ORDERS)
def test_emulator_complains(instance, complaint, order):
    with pytest.raises(emulate.EmulatorError, match=complaint):
        launch(instance, emulate.aligned(np.zeros(64, np.uint32)), 64, threads=64, shared=256, order=order)


@pytest.mark.parametrize("order", emulate.ORDERS)
@pytest.mark.parametrize(("releases", "acquires"), [(True, True), (False, True), (True, False)])
def test_sums_of_others_must_be_released_and_acquired(releases, acquires, order):
    instance = f"sum_of_the_other<{str(releases).lower()}, {str(acquires).lower()}>"
    before = np.array([0xABABABAB], np.uint32)
    if releases and acquires:
        out, _ = launch(instance, before, 100, threads=64, order=order)
        assert np.all(out[4:].view(np.float32) == 1.5)
        return
    with pytest.raises(emulate.EmulatorError, match=r"a sum read that its writer's warp has not released .* acquired"):
        launch(instance, before, 100, threads=64, order=order)


@pytest.mark.parametrize(
    ("kind", "stride", "wavefronts"),
    [
        # a warp at a time: one word of every bank; two banks' distance; all lanes in one bank; one word for all
        ("u32", 4, 1), ("u32", 8, 2), ("u32", 128, 32), ("u32", 0, 1), ("u32", 132, 1),
        # a half at a time
        ("uint2", 8, 2), ("uint2", 16, 4), ("uint2", 128, 32), ("uint2", 0, 2),
        # a quarter at a time
        ("uint4", 16, 4), ("uint4", 32, 8), ("uint4", 0, 4), ("uint4", 144, 4),
    ],
)  # fmt: skip
def test_emulator_counts_wavefronts(kind, stride, wavefronts):
    _, report = launch(f"strided<{kind}>", np.array([stride], np.uint32), 32)
    loads = report.of("strided")
    assert (loads.instructions, loads.wavefronts) == (1, wavefronts)
