"""Whatever a product and a GPU are, what is decided for them can be launched: no GPU is needed."""

import math
from dataclasses import replace

import numpy as np
from emulator import cases
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from codegemm.engines.cuda import model
from codegemm.engines.cuda.gpu import CLUSTER, GRID, KNOWN
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.steps import COUNTER_BYTES, Launch, Place, Structure
from codegemm.formats.codebook import CodebookSpec
from codegemm.formats.format import spec_of
from codegemm.kernel import Product
from codegemm.registry import multiplies, registered

LANES, MAX_THREADS = 32, 1024
MULTIPROCESSORS = (1, 2, 7, 13, 17, 46, 76, 84, 101, 114, 131, 132, 170)
SIDES = (1, 33, 64, 128, 1000, 1024, 1536, 4096, 11008, 14336, 28672, 53248, 300_000)


@st.composite
def gpus(draw):
    """One of every architecture, cut down as makers do it; with or without what was asked of clusters."""
    gpu = replace(draw(st.sampled_from(list(KNOWN.values()))), multiprocessors=draw(st.sampled_from(MULTIPROCESSORS)))
    if gpu.arch < 90:
        return gpu
    parts, each = draw(st.sampled_from(((7, 12), (8, 16), (1, 132), (17, 10), (3, 5)))), draw(st.booleans())
    largest = draw(st.sampled_from((0, 8, CLUSTER)))

    def at_once(size):
        return 0 if size > largest else parts[0] * (parts[1] // size) if each else gpu.multiprocessors // size

    return replace(gpu, clusters=tuple(map(at_once, range(1, CLUSTER + 1))) if largest else ())


@st.composite
def specs(draw):
    rows, columns = draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES))
    kind = draw(st.sampled_from(("codebook", "codebook", "codebook", "signs", "fixed")))
    if kind == "fixed":
        text = draw(st.sampled_from(("e8p", "e8p3", "e8p4", "qtip", "qtip3", "qtip4")))
    else:
        v = draw(st.sampled_from((4, 8, 4, 8, 16, 1, 2, 3, 5)))
        v = min(v, 8) if kind == "signs" else v
        group = draw(st.sampled_from((-1, 1, 2, 3, 4, 16, 32, 12, 100)))
        columns = -(-columns // (v * max(group, 1))) * v * max(group, 1)
        m, b = draw(st.sampled_from((1, 2, 1, 2, 3, 8))), draw(st.sampled_from((8, 8, 4, 2, 6, 11, 16)))
        name = f"q{m}v{v}" if kind == "signs" else f"m{m}v{v}b{b}"
        text = f"{name}g{group * v if group > 0 else -1}"
    around = draw(st.sampled_from(("", "", "", "+offsets", "+rotated", "+ordered", "+rotated+added")))
    try:
        spec = spec_of((rows, columns), text + around)
    except ValueError:
        assume(False)
    if isinstance(spec, CodebookSpec) and rows > 2 and draw(st.booleans()):
        spec = replace(spec, part_rows=(rows // 3, rows - rows // 3))
    return spec


ROWS_OF_X = st.one_of(st.integers(1, 16), st.integers(1, 140), st.sampled_from((1000, 4096, 1_000_000)))
DTYPES = st.sampled_from(("float16", "bfloat16", "float32"))


SEVEN_OF_TWELVE = replace(
    KNOWN["rtx5090"], multiprocessors=84, clusters=tuple(7 * (12 // size) for size in range(1, 17))
)


@settings(max_examples=3000 if cases.ALL else 200)
@given(specs(), ROWS_OF_X, DTYPES, st.sampled_from((None, "float32")), st.booleans(), gpus())
@example(spec_of((11008, 4096), "m1v4b4g128"), 16, "float16", None, False, SEVEN_OF_TWELVE)  # stages of many warps
def test_what_is_decided_can_be_launched(spec, n, dtype, out_dtype, biased, gpu):
    product = Product.of(spec, n, dtype, out_dtype, biased)
    for kernel in registered("cuda", spec):
        if not isinstance(kernel, CudaKernel) or not multiplies(kernel, spec):
            continue
        if kernel.refuses_on(replace(product, out_dtype=product.dtype, biased=False), gpu):
            continue
        steps = kernel.decide(product, gpu)
        seconds = model.seconds(steps.works, gpu)
        assert math.isfinite(seconds)
        assert seconds > 0
        for step in steps.each:
            for place in places_of(step):
                assert place.start >= COUNTER_BYTES, kernel
                assert 0 < place.nbytes <= steps.workspace - place.start, kernel
            if isinstance(step, Launch):
                check_launch(step, gpu)


def check_launch(launch, gpu):
    assert all(0 < size <= most for size, most in zip(launch.grid, GRID)), launch
    assert 0 < launch.threads <= MAX_THREADS, launch
    assert launch.threads % LANES == 0, launch
    assert 0 <= launch.shared_bytes <= gpu.shared_per_block, launch
    if launch.cluster > 1:
        assert launch.grid[-1] % launch.cluster == 0, launch
        assert gpu.clusters_of(launch.cluster) > 0, launch
    for structure in launch.arguments:
        if isinstance(structure, Structure):
            for name, value in zip(structure.dtype.names, structure.values):
                if isinstance(value, (int, np.integer)) and structure.dtype[name].kind in "iu":
                    held = np.iinfo(structure.dtype[name])
                    assert held.min <= value <= held.max, (launch, name)


def places_of(step):
    """All that it reads and writes in the workspace."""
    arguments = step.arguments if isinstance(step, Launch) else (step.dense,)
    given = [value for each in arguments for value in (each.values if isinstance(each, Structure) else (each,))]
    return [each for each in (step.x, step.y, *given) if isinstance(each, Place)]
