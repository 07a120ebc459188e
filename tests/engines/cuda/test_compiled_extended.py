"""What is around a core as NVRTC compiles it for every architecture: no GPU is needed."""

import itertools

import pytest
from support import sass

from codegemm.engines.cuda import compiler, extended
from codegemm.engines.cuda.steps import X_TYPES

PLAIN = [f"{name}<{x}>" for name in ("sum_groups", "finish") for x in X_TYPES.values()]
ROTATIONS = [f"rotate_x<{x}, {y}, {each}>" for x in X_TYPES.values() for y in ("Half", "Float") for each in (1, 2, 4)]
# Those of fp16 on all architectures, the others on one in turns.
INSTANCES = list(
    dict.fromkeys([
        *itertools.product(("sum_groups<Half>", "finish<Half>", "rotate_x<Half, Float, 4>"), compiler.ARCHITECTURES),
        *zip(PLAIN + ROTATIONS, itertools.cycle(compiler.ARCHITECTURES)),
    ])
)  # fmt: skip
KERNELS = [(extended.SOURCE, *key) for key in INSTANCES]


@pytest.mark.parametrize(("instance", "arch"), INSTANCES)
def test_compiled_kernels_keep_to_their_budgets(instance, arch, cubins):
    sass.check_budgets(cubins[extended.SOURCE, instance, arch], extended.MAX_THREADS)
