"""Products that are too large for a kernel's integers are refused, with the number; those just below are not."""

import numpy as np
import pytest

import codegemm
from codegemm import Product
from codegemm.devices import CPU
from codegemm.engines import cut, limits
from codegemm.engines.cpu.kernel import CpuKernel
from codegemm.engines.cpu.transformed import CpuTransformed
from codegemm.engines.cuda import dequant_cut, psumbook_cut, rows
from codegemm.engines.cuda.gpu import GRID, KNOWN
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.formats.format import spec_of
from codegemm.registry import multiplies, registered

HALF = np.dtype(np.float16)
H200, A100 = KNOWN["h200"], KNOWN["a100"]
CONFIGS = ("m1v4g128", "m2v8g-1", "m1v8b16g-1", "q2g128", "e8p", "qtip", "m1v4g128+rotated", "m1v4g128+offsets")
HADAMARD_COLUMNS = 1 << 26  # E8P's columns, which have to be a power of two or nearly so


def reason_of(kernel, shape, config, n, gpu=A100):
    product = Product.of(spec_of(shape, config), n, HALF)
    return kernel.refuses_on(product, gpu) if isinstance(kernel, CudaKernel) else kernel.refuses(product, CPU)


def kernels(config, engine=None):
    """Those with compiled code of their own for such weights."""
    spec = spec_of((1024, 1024), config)
    compiled = (CpuKernel, CpuTransformed, CudaKernel)
    return [k for k in registered(engine, spec) if isinstance(k, compiled) and multiplies(k, spec)]


def named(name, config="m1v4g128"):
    return next(kernel for kernel in kernels(config, "cuda") if kernel.name == name)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_compiled_kernel_refuses_what_its_integers_do_not_hold(config):
    found = kernels(config)
    assert {kernel.engine for kernel in found} == {"cpu", "cuda"}
    for kernel in found:
        if reason_of(kernel, (1024, 1024), config, 1) is not None:
            continue
        for shape, n, text in (
            ((1 << 31, 1024), 1, "out_features=2147483648: up to 2147418112"),
            ((1024, 1 << 27), 1, "in_features=134217728: up to 134217727"),
        ):
            assert text in reason_of(kernel, shape, config, n), kernel
        if reason_of(kernel, (1024, 1024), config, 1 << 20) is None:
            assert "n=2147483648: up to 2147418112" in reason_of(kernel, (1024, 1024), config, 1 << 31), kernel


@pytest.mark.parametrize("config", ["m2v8g-1", "q1g-1"])
def test_the_largest_products_are_not_refused(config):
    columns = limits.COLUMNS // 8 * 8
    found = [*kernels(config, "cpu"), named("dequant", config), named("dense", config)]
    for kernel in (kernel for kernel in found if kernel.precision == "full"):
        if reason_of(kernel, (1024, 1024), config, 1) is not None:
            continue
        assert reason_of(kernel, (limits.ROWS, 64), config, 1) is None, kernel
        assert reason_of(kernel, (32, columns), config, 1) is None, kernel
        if kernel.name != "dequant" or kernel.engine == "cpu":
            assert reason_of(kernel, (32, 64), config, limits.ROWS) is None, kernel


@pytest.mark.parametrize(
    ("name", "config", "columns", "rows", "text"),
    [
        # 16 bytes of a lane's codes: 64 loads of 32 rows in each 32 k-vectors; half as many where codes have 4 bits.
        ("psumbook", "m1v4g-1", 4096, 1 << 26, "4294969344 loads of codes: up to 4294967296"),
        ("psumbook", "m1v4b4g-1", 4096, 1 << 27, "loads of codes: up to 4294967296"),
        # A scale of each of 32 k-vectors: a lane loads 8 at once, which are more loads than those of 2-bit codes.
        ("psumbook", "m1v4b2g4", 4096, 1 << 25, "loads of scales: up to 4294967296"),
        # 4 loads of scales of 32 rows in each group.
        ("dequant", "m1v4g128", 1 << 16, 1 << 26, "4294969344 loads of scales: up to 4294967296"),
        # 32 loads of 16 rows in each 64 columns.
        ("quip", "e8p", 1 << 20, 1 << 17, "loads of codes: up to 4294967296"),
    ],
)
def test_weights_whose_places_a_kernel_does_not_number(name, config, columns, rows, text):
    kernel = named(name, config)
    more = 2 * rows if config == "e8p" else rows + 32
    assert reason_of(kernel, (rows, columns), config, 1) is None
    assert text in reason_of(kernel, (more, columns), config, 1)


def test_rotated_x_is_counted_in_bytes():
    kernel, shape = named("quip", "e8p"), (1024, HADAMARD_COLUMNS)
    assert reason_of(kernel, shape, "e8p", 21) is None
    assert reason_of(kernel, shape, "e8p", 22) == (
        "4429185024 bytes of rotated x: up to 4294967296, for its integers have 32 bits"
    )
    assert reason_of(kernel, shape, "e8p", 49) is None  # rebuilt and multiplied by the library


def test_dense_slices_are_counted():
    for name, config in (("dequant_dense", "m1v4g-1"), ("aqlm", "m1v8g-1")):
        kernel, rows = named(name, config), 1 << 20
        # 4096 slices of 256 MiB.
        assert reason_of(kernel, (rows, 1 << 19), config, 64) is None
        assert reason_of(kernel, (2 * rows, 1 << 19), config, 64) == (
            "8192 slices of the dense matrix: it rebuilds up to 4096"
        ), name


def test_launches_have_so_many_thread_blocks():
    """Of what is around a core: 8 rows of x a block at the end, and sums of groups numbered with a sign."""
    kernel = named("dequant_dense", "m1v4g128+offsets")
    most = 8 * GRID[1]
    assert reason_of(kernel, (256, 256), "m1v4g128+offsets", most) is None
    assert reason_of(kernel, (256, 256), "m1v4g128+offsets", most + 1) == (
        "65536 thread blocks side by side: a launch has up to 65535 there"
    )
    assert "2147614720 sums of groups: up to 2147418112" in reason_of(
        kernel, (256, 128 << 14), "m1v4g128+offsets", 131080
    )


def test_a_product_is_refused_before_anything_is_made(make_weight):
    weight = make_weight(64, 128, "m1v4")
    for kernel in ("psumbook", "dequant", "dequant_dense", "aqlm"):
        with pytest.raises(
            codegemm.KernelError, match=r"n=2147483648: up to 2147418112, for its integers have 32 bits"
        ):
            codegemm.plan(weight, 1 << 31, kernel=kernel)
    with pytest.raises(codegemm.KernelError, match=r"psumbook \(out_features=9999999999: up to 2147418112"):
        codegemm.warmup([(9999999999, 4096)], [1], "m1v4", np.float32, "cpu")


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000, 12345])
def test_divisions_are_all_numbers_of_equal_parts(count):
    expected = sorted({-(-count // each) for each in range(1, count + 1)})
    assert list(cut.divisions(count, count)) == expected
    assert list(cut.divisions(count, 40)) == [parts for parts in expected if parts <= 40]


def test_cuts_of_the_largest_matrices_are_numbers_alone():
    """As many slices as there may be, and splits."""
    spec = spec_of((32 * (limits.ROWS // 32), 4096), "m1v4g-1")
    pieces = rows.slices(spec, 3)
    assert (len(pieces), pieces.most_blocks) == (-(-limits.ROWS // 32 // 3), 3)
    assert rows.slices_argument(pieces).nbytes == rows.SLICES.itemsize
    assert dequant_cut.cut_for(spec, 1, H200).partials == 1
    wide = spec_of((32, limits.COLUMNS // 128 * 128), "m1v4g128")
    for cuts in (psumbook_cut.candidates(wide, 1, A100), dequant_cut.candidates(wide, 1, A100)):
        assert max(each.splits for each in cuts) <= GRID[1]
