"""The CUDA kernels of the QuIP# baseline in the emulator: rotations, products, counters, barriers."""

import numpy as np
import pytest
from emulator import cases, emulate, gpu

from codegemm import arrays
from codegemm.engines.cuda import rotation
from codegemm.engines.cuda.rows import COUNTER_BYTES
from codegemm.formats.hadamard import ORDERS, transform

DTYPES = ("float16", "bfloat16", "float32")
PLACE = np.arange(64).reshape(4, 2, 8).swapaxes(0, 1).ravel()  # k of each place among 64


class Rotations:
    """The launches of one length in the emulator, with a workspace of their own."""

    def __init__(self, vector, n, columns=2):
        self.length, self.n = len(vector), n
        self.vector = gpu.aligned(vector)
        size = n * self.length
        self.places = rotation.Places(columns, COUNTER_BYTES, COUNTER_BYTES + 256, COUNTER_BYTES + 256 + 4 * size)
        self.workspace = gpu.aligned(np.full(self.places.sums + 4 * size, 0xFF, np.uint8))

    def rotate_in(self, x, order="forward"):
        """U^T (vector * x), float64 [n, columns, length], still with the rows' powers of two, and those [n]."""
        self._launch("in", True, gpu.aligned(x), None, x.dtype, np.dtype(np.float32), order)
        memory = self.workspace.host
        scales = memory[self.places.scales :][: 4 * self.n].view(np.float32)
        rotated = memory[self.places.rotated :][: 2 * self.places.columns * self.n * self.length].view(np.float16)
        inverse = np.argsort(PLACE)
        rows = rotated.reshape(-1, 64)[:, inverse].reshape(self.n, self.places.columns, self.length)
        return rows.astype(np.float64), scales.astype(np.float64)

    def rotate_out(self, sums, scales, dtype, out_dtype, order="forward"):
        """vector * U (sums * scales)."""
        memory = self.workspace.host
        memory[self.places.scales :][: 4 * self.n].view(np.float32)[:] = scales
        memory[self.places.sums :][: 4 * sums.size].view(np.float32)[:] = sums.ravel()
        y = gpu.aligned(np.full(sums.shape, np.nan, out_dtype))
        self._launch("out", False, None, y, dtype, out_dtype, order)
        return y.host

    def _launch(self, side, transpose, x, y, dtype, out_dtype, order):
        made = rotation.arrange(self.vector, transpose=transpose)
        gpu.emulation.order = order
        none = gpu.aligned(np.zeros(1))
        launch = rotation.decide("cuda:0", side, made, self.places, self.n, dtype, out_dtype)
        launch(none if x is None else x, none if y is None else y, self.workspace, None)
        self.report = gpu.emulation.reports[-1]


def relative(y, truth):
    return np.linalg.norm(y - truth) / np.linalg.norm(truth)


INPUTS = cases.covering(
    {"length": (*(16 * order for order in ORDERS), 64, 512, 4096), "dtype": DTYPES, "order": emulate.ORDERS},
    allowed=lambda case: cases.ALL or case.get("length", 0) <= 960 or case.get("dtype") in (None, "float16"),
)
SUMS = [4 * order for order in ORDERS] + [16, 32, 1024, 4096, 12 * 64, 28 * 64]


@pytest.mark.parametrize("case", INPUTS, ids=cases.name_of)
def test_emulated_rotation_of_x(case, emulated_gpu, rng):
    length, n = case["length"], 2 if case["length"] <= 960 else 1
    vector = rng.standard_normal(length).astype(np.float16)
    x = rng.standard_normal((n, length)).astype(arrays.float_dtype(case["dtype"]))
    rotations = Rotations(vector, n)
    (rotated, scales), truth = rotations.rotate_in(x, case["order"]), x.astype(np.float64) * vector
    truth = transform(truth, transpose=True)
    assert relative(rotated[:, 0] * scales[:, None], truth) <= 2.5e-4
    assert relative(rotated.sum(1) * scales[:, None], truth) <= 1e-6
    assert abs(rotated[:, 0]).max() <= 2**15
    assert (np.log2(scales) % 1 == 0).all()


@pytest.mark.parametrize("length", SUMS)
def test_emulated_rotation_of_sums(length, emulated_gpu, rng):
    vector = rng.standard_normal(length).astype(np.float32)
    sums, scales = rng.standard_normal((2, length)).astype(np.float32), 2.0 ** rng.integers(-20, 20, 2)
    y = Rotations(vector, 2).rotate_out(sums, scales, np.dtype(np.float16), np.dtype(np.float32))
    truth = transform(sums.astype(np.float64)) * vector * scales[:, None]
    for row, expected in zip(y, truth):
        assert relative(row, expected) <= 1e-6
