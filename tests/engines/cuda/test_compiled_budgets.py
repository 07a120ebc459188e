"""The CUDA kernels as NVRTC compiles them for every architecture, what they use of it: no GPU is needed."""

import itertools

import pytest
from emulator import cases
from support import sass

from codegemm.baselines.cuda import aqlm, lutgemm, qtip, quip
from codegemm.engines.cuda import (
    compiler,
    dequant_cut,
    dequant_dense,
    dequant_fast,
    dequant_plain,
    dequant_wide,
    psumbook,
    psumbook_cut,
    rotation,
    transformed,
)
from codegemm.engines.cuda import dequant_wide_cut as wide_cut
from codegemm.engines.cuda.steps import X_TYPES
from codegemm.formats.codebook import CodebookSpec
from codegemm.formats.codebook_config import CodebookConfig

STATIC_SHARED = 1024  # bytes of the system's own, from sm_90 on
ARCHITECTURES, X = compiler.ARCHITECTURES, tuple(X_TYPES.values())
PSUMBOOK = {
    "v": (4, 8, 16, 1, 3, 5, 12),
    "m": (1, 2, 3, 4, 8),
    "b": (8, 7, 5, 4, 2),
    "phases": (1, 2, 4, 8, 16, 32, 0),
    "n": (1, 2, 4),
    "x": X,
    "rows": (2, 1),
    "arch": ARCHITECTURES,
}
FAST = {
    "v": (4, 8, 16),
    "m": (1, 2, 3, 4, 8),
    "b": (8, 4, 2, 16),
    "phases": (1, 2, 4, 0),
    "n": dequant_cut.BATCHES,
    "x": X,
    "shared": ("true", "false"),
    "arch": ARCHITECTURES,
}
PLAIN = {
    "v": (3, 1, 5, 7, 12),
    "code": ("u8", "u16"),
    "n": dequant_plain.BATCHES,
    "x": X,
    "arch": ARCHITECTURES,
}
WIDE = {
    "v": (4, 8, 16),
    "m": (1, 2),
    "b": (8, 4, 2),
    "phases": (1, 0),
    "n": wide_cut.BATCHES,
    "x": X,
    "chains": (2, 1),
    "arch": (wide_cut.ARCH,),
}
DEQUANTIZE = {
    "v": (4, 8, 16, 1, 2, 3, 12),
    "code": ("u8", "u16"),
    "x": X,
    "shared": ("true", "false"),
    "arch": ARCHITECTURES,
}
AQLM = {
    "v, m": (*(f"8, {m}" for m in range(1, 9)), "16, 1"),
    "code": ("u8", "u16"),
    "x": X,
    "arch": ARCHITECTURES,
}
LUTGEMM = {"v": (8, 4, 7, 1, 3), "words": (4, 1, 2, 0), "x": X, "arch": ARCHITECTURES}
QTIP = {"bits": (2, 3, 4), "groups": (1, 2), "arch": ARCHITECTURES}
QUIP = {"bits": (2, 3, 4), "groups": (1, 2, 3), "arch": ARCHITECTURES}


def spec_of(case):
    """A weight that an instance of the dequantising kernel multiplies."""
    v, phases = case["v"], case["phases"]
    config = CodebookConfig(v=v, m=case["m"], b=case["b"], g=16 // phases * v if phases else -1)
    return CodebookSpec(32, 64 * v, config, (32,))


# What of the axes there may be, also of a part of them.
def psumbook_has(case):
    """Two position rows only where a cut may choose them."""
    return not (case.get("rows") == 2 and (case.get("n") == 4 or case.get("phases", 0) > 8))


def fast_has(case):
    if case.get("b") == 16 and case.get("shared") == "true":
        return False
    if not set(FAST) <= set(case):
        return True
    return dequant_cut.kernel_batch(spec_of(case), case["n"], case["shared"] == "true") == case["n"]


def wide_has(case):
    if not set(WIDE) <= set(case):
        return True
    if case["x"] != "Half" and case["n"] > wide_cut.MAX_SCALED_N:
        return False
    return case["chains"] in wide_cut.chains(spec_of(case))


def covering(source, form, axes, threads, has=lambda case: True):
    """(source, instance, architecture) and threads of instances of a template; threads: of a case, or of all."""
    # All pairs of values only with the larger set: registers change with a kernel, and not from run to run.
    for case in cases.covering(axes, 100, has) if cases.ALL else cases.covering(axes, 0, has)[::24]:
        values = ", ".join(str(case[name]) for name in axes if name != "arch")
        yield (source, f"{form}<{values}>", case["arch"]), threads(case) if callable(threads) else threads


def on_all(source, instances, threads):
    """The same of these instances, on all architectures; of the smaller set of tests on two."""
    architectures = ARCHITECTURES if cases.ALL else (80, 90)
    return [((source, *each), threads) for each in itertools.product(instances, architectures)]


def in_turns(source, instances, threads):
    """The same, each on one architecture in turns."""
    if cases.ALL:
        return on_all(source, instances, threads)
    return [((source, *each), threads) for each in zip(instances, itertools.cycle(ARCHITECTURES))]


FULL = [f"DequantShape<4, 1, 8, {phases}, {n}, Float, true>" for phases in (0, 1) for n in (8, 16)]
PUBLISHED = [f"aqlm<{shape}, Half>" for shape in ("8, 1, u16", "8, 2, u8", "16, 1, u16", "8, 1, u8")]
AROUND = [f"{name}<{x}>" for name in ("sum_groups", "finish") for x in X]
AROUND += [f"rotate_x<{x}, {y}, {each}>" for x in X for y in ("Half", "Float") for each in (1, 2, 4)]
AROUND += ["rotate_x<Bfloat, Bfloat, 1>"]
AROUND_FP16 = ["sum_groups<Half>", "finish<Half>", "rotate_x<Half, Float, 4>"]
ROTATIONS = [f"rotate_{side}<{x}, {vector}>" for side in ("in", "out") for x in X for vector in ("Half", "Float")]
BUDGETS = dict([
    *covering(psumbook.SOURCE, "psumbook", PSUMBOOK, 32 * psumbook_cut.MAX_WARPS, psumbook_has),
    *covering(
        dequant_fast.SOURCE,
        "DequantShape",
        FAST,
        lambda case: 32 * dequant_cut.most_warps(spec_of(case), case["n"], case["shared"] == "true"),
        fast_has,
    ),
    # As many threads as registers allow, x in float32, which must be scaled: the most that a thread holds.
    *on_all(dequant_fast.SOURCE, FULL, 512),
    *covering(dequant_plain.SOURCE, "dequant_plain", PLAIN, 256),
    *covering(
        dequant_wide.SOURCE,
        "WideShape",
        WIDE,
        lambda case: 32 * wide_cut.most_warps(spec_of(case), case["chains"]),
        wide_has,
    ),
    *(((dequant_wide.X_SOURCE, f"WideX<16, 64, {x}>", wide_cut.ARCH), 32 * dequant_wide.X_WARPS) for x in X),
    *covering(dequant_dense.SOURCE, "dequantize", DEQUANTIZE, 256),
    *on_all(aqlm.SOURCE, PUBLISHED, aqlm.LANES * aqlm.MAX_ROWS),
    *covering(aqlm.SOURCE, "aqlm", AQLM, aqlm.LANES * aqlm.MAX_ROWS),
    *on_all(transformed.SOURCE, AROUND_FP16, transformed.MAX_THREADS),
    *in_turns(transformed.SOURCE, AROUND, transformed.MAX_THREADS),
    *on_all(lutgemm.SOURCE, ["lutgemm<8, 4, Half>", "lutgemm<8, 1, Float>"], lutgemm.LANES * lutgemm.MAX_WARPS),
    *covering(lutgemm.SOURCE, "lutgemm", LUTGEMM, lutgemm.LANES * lutgemm.MAX_WARPS),
    *covering(qtip.SOURCE, "qtip", QTIP, qtip.LANES * qtip.MAX_WARPS),
    *in_turns(qtip.SOURCE, [f"dequantize_qtip<{bits}>" for bits in (2, 3, 4)], qtip.LANES * qtip.MAX_WARPS),
    *covering(quip.SOURCE, "quip", QUIP, quip.LANES * quip.MAX_WARPS),
    *in_turns(quip.SOURCE, [f"dequantize_e8p<{bits}>" for bits in (2, 3, 4)], quip.LANES * quip.MAX_WARPS),
    *in_turns(rotation.SOURCE, ROTATIONS, rotation.MAX_THREADS),
])  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled(request):
    """What the tests that run need, on all cores at once."""
    sass.compile_all(item.callspec.params["kernel"] for item in request.session.items if item.module is request.module)


@pytest.mark.parametrize("kernel", BUDGETS, ids=lambda kernel: f"{kernel[1]}-{kernel[2]}")
def test_compiled_kernels_keep_to_their_budgets(kernel):
    """A multiprocessor's registers hold the threads, nothing is spilled, and shared memory is all dynamic."""
    used = sass.resources(sass.cubin_of(*kernel))
    assert used["REG"] * BUDGETS[kernel] <= sass.REGISTERS
    assert used["STACK"] <= (64 if kernel[0] in (quip.SOURCE, rotation.SOURCE) else 0)  # what no loop of products needs
    assert used["LOCAL"] == 0
    assert used["SHARED"] <= STATIC_SHARED
