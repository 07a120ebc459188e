"""Steps as data: structures, places, and that plans have what every smaller product needs."""

import numpy as np
import pytest
from emulator import emulate

from codegemm.devices import FIRST_GPU
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.launch import Prepared, filled
from codegemm.engines.cuda.model import Work
from codegemm.engines.cuda.psumbook import Psumbook
from codegemm.engines.cuda.rows import split_launch
from codegemm.engines.cuda.steps import COUNTER_BYTES, Array, Launch, Number, Scratch, Steps, Table, instance, structure
from codegemm.formats.format import spec_of
from codegemm.kernel import Product
from codegemm.registry import multiplies, registered

FIELDS = np.dtype([("codes", np.uint64), ("tables", np.uint64), ("sums", np.uint64), ("in_features", np.int32)])
CONFIGS = (
    "m1v4g128", "m2v8g-1", "m1v3b2g3", "e8p", "m1v4g128+rotated+offsets", "m2v8g-1+rotated", "m1v8b16g-1+terms2",
    "m2v8g-1+ordered", "q2g128", "q3g32+rotated+added",
)  # fmt: skip


def test_a_structure_takes_names_owners_arrays_and_places():
    spec, scratch = spec_of((32, 64), "m1v4g32"), Scratch()
    scratch.take("x'", (3,), np.float32)
    sums = scratch.take("sums", (2, 5), np.float32)
    assert (sums.start, sums.nbytes, scratch.end) == (COUNTER_BYTES + 256, 40, COUNTER_BYTES + 512)
    arguments = structure(FIELDS, spec, tables=Table(np.arange, (4,)), sums=sums)
    codes = np.arange(12, dtype=np.uint8).reshape(4, 3)
    prepared = Prepared(spec, "cpu", {"codes": codes}, {"scale": 0.5})
    values = filled(arguments, prepared)
    assert values["codes"] == codes.ctypes.data
    assert values["tables"] == prepared.arrays[Table(np.arange, (4,))].ctypes.data
    assert (values["sums"], values["in_features"]) == (sums.start, 64)
    assert filled(Array("codes", 2), prepared) == codes[2:].ctypes.data
    assert filled(Number("scale"), prepared) == 0.5
    with pytest.raises(TypeError, match="a structure has no in_feature; it has codes, tables, sums, in_features"):
        structure(FIELDS, spec, in_feature=1, tables=0, sums=0)
    with pytest.raises(KeyError, match="in_features"):
        structure(FIELDS, tables=0, sums=0)
    with pytest.raises(KeyError, match="code"):
        filled(Array("code"), prepared)
    with pytest.raises(ValueError, match="'sums' has a place in the workspace already"):
        scratch.take("sums", (1,), np.float32)


def test_instances_are_written_as_in_cpp():
    assert instance("one", 4, np.dtype(np.float16), True, "u8") == "one<4, Half, true, u8>"


def test_partial_sums_are_taken_first():
    product, scratch = Product.of(spec_of((64, 512), "m1v4g128"), 2, np.float16), Scratch()
    scratch.take("other", (1,), np.float32)
    with pytest.raises(ValueError, match="partial sums at 65792: they must be the first that is taken"):
        split_launch(product, 2, scratch, structure(np.dtype([("n", np.int32)]), n=1))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_plans_workspace_is_enough_for_fewer_rows(config, emulated_gpu):
    """For every kernel, whatever y's dtype; a product has what it needs itself."""
    spec, gpu = spec_of((128, 1536), config), emulate.SMALL_GPU
    for kernel in registered("cuda", spec):
        for n in (*range(1, 12), 20, 48, 49, 64, 70, 130):
            product = Product.of(spec, n, np.float16)
            if not isinstance(kernel, CudaKernel) or not multiplies(kernel, spec) or kernel.unfit_for(product, gpu):
                continue
            planned = max(kernel.workspace(Product.of(spec, r, np.float16), FIRST_GPU) for r in kernel.batches(n))
            for rows in range(1, n + 1):
                for out_dtype in (np.float16, np.float32):
                    smaller = Product.of(spec, rows, np.float16, out_dtype)
                    needed = kernel.decide(smaller, gpu).workspace
                    assert needed <= planned, (kernel, n, rows)
                    assert needed <= kernel.workspace(smaller, FIRST_GPU)


def test_the_emulator_tells_wrong_steps(make_weight, rng):
    weight, x = make_weight(64, 512, "m1v4g128"), rng.standard_normal((1, 512)).astype(np.float16)
    kernel = Psumbook()
    [launch] = kernel.decide(Product.of(weight.spec, 1, np.float16, np.float32), emulate.SMALL_GPU).each
    few = Launch(launch.source, launch.instance, launch.grid, launch.threads, launch.shared_bytes, (), Work())
    with pytest.raises(emulate.EmulatorError, match="takes 6 arguments, 3 came"):
        emulate.multiply(kernel, weight, x, steps=Steps((few,), COUNTER_BYTES))
    with pytest.raises(ValueError, match="n=5: its tables hold up to 4 rows of x"):
        emulate.multiply(kernel, weight, np.repeat(x, 5, 0))
