"""The CUDA kernels of the AQLM baseline as NVRTC compiles them for every architecture: no GPU is needed."""

import itertools

import pytest
from allpairspy import AllPairs
from emulator import cases
from support import sass

from codegemm.baselines.cuda import aqlm
from codegemm.engines.cuda import compiler
from codegemm.engines.cuda.steps import X_TYPES

PUBLISHED = ((8, 1, "u16"), (8, 2, "u8"), (16, 1, "u16"), (8, 1, "u8"))
AXES = {
    "shape": ((8, 1), (8, 2), (8, 3), (8, 4), (8, 5), (8, 6), (8, 7), (8, 8), (16, 1)),  # v, m
    "code": ("u8", "u16"),
    "x": tuple(X_TYPES.values()),
    "arch": compiler.ARCHITECTURES,
}


def instances():
    """Of the template, with their architectures: the published ones on all, of the others every pair of two axes."""
    chosen = itertools.product(*AXES.values()) if cases.ALL else AllPairs(list(AXES.values()))
    named = [(f"aqlm<{v}, {m}, {code}, Half>", arch) for (v, m, code) in PUBLISHED for arch in AXES["arch"]]
    named += [(f"aqlm<{v}, {m}, {code}, {x}>", arch) for (v, m), code, x, arch in chosen]
    return list(dict.fromkeys(named))


INSTANCES = instances()
KERNELS = [(aqlm.SOURCE, *key) for key in INSTANCES]


@pytest.mark.parametrize(("instance", "arch"), INSTANCES)
def test_compiled_kernels_keep_to_their_budgets(instance, arch, cubins):
    sass.check_budgets(cubins[aqlm.SOURCE, instance, arch], aqlm.LANES * aqlm.MAX_ROWS)


@pytest.mark.parametrize("arch", [80, 90, 120])
@pytest.mark.parametrize(("v", "m", "code"), PUBLISHED)
def test_compiled_loop_waits_for_centroids_and_not_for_instructions(v, m, code, arch, cubins):
    """A clock has four instructions. 16 bytes a lane take four clocks from shared memory, and over twenty from L2."""
    loop = sass.smallest_loop(cubins[aqlm.SOURCE, f"aqlm<{v}, {m}, {code}, Half>", arch], "HFMA2", 4)
    if code == "u8":
        assert loop["LDS"] % (m + 1) == loop["LDG"] == 0  # of x once for m centroids
        assert loop.total() / 4 <= 4 * loop["LDS"], loop
    else:
        assert loop["LDG"] == loop["LDS"]
        assert loop.total() <= 18 * loop["LDG"], loop
