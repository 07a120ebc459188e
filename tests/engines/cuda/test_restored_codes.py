"""Weights that hold their codes in the order of a kernel on a GPU alone."""

import pickle

import numpy as np
import pytest
from emulator import emulate

import codegemm
from codegemm.formats import format
from codegemm.kernel import Product
from codegemm.registry import kernel_for, multiplies, registered
from codegemm.testing.problems import PROBLEMS, Problem

CASES = [
    *PROBLEMS,
    *(Problem(64, 960, text) for each in format.registered() for text in each.examples),
    *(
        Problem(rows, 15 * v, f"m{m}v{v}b{b}g{g}", parts)
        for b, m in ((1, 3), (3, 1), (5, 2), (8, 1), (11, 2), (16, 1))
        for rows, parts, v, g in ((70, 3, 8, -1), (33, 1, 4, 20), (64, 2, 16, 16), (97, 3, 5, 15))
    ),
]


def kernels_for(spec):
    """Those that arrange the codes of such weights, on a GPU."""
    product = Product.of(spec, 1, np.float16)
    kernels = [kernel_for(kernel, spec) for kernel in registered() if kernel.engine == "cuda" and kernel.rearranged]
    return [k for k in kernels if multiplies(k, spec) and k.unfit_for(product, emulate.SMALL_GPU) is None]


def let_go(weight):
    """Names of arrays that a weight holds no more."""
    held = getattr(weight, "core", weight)
    return tuple(name for name in held.tensor_names if name not in vars(held))


@pytest.mark.parametrize("problem", CASES, ids=str)
def test_codes_are_those_that_were_arranged(problem, make_weight):
    """By each kernel in turn, of what the one before holds."""
    weight = make_weight(*problem)
    before = pickle.loads(pickle.dumps(weight))
    kernels = kernels_for(weight.spec)
    assert kernels or not isinstance(weight, codegemm.CodebookWeight)  # others may take codes as they are
    for kernel in kernels:
        kernel.let_go(weight, kernel.arrange(weight))
        assert let_go(weight) == kernel.rearranged
        assert weight == before


@pytest.mark.parametrize(
    ("shape", "config", "kernel"),
    [
        ((70, 240), "m1v8g24", "dequant"),
        ((40, 96), "m1v4g24+rotated+offsets", "psumbook"),
        ((48, 128), "e8p3", "quip"),
    ],
)
def test_emulated_products_with_codes_let_go(shape, config, kernel, emulated_gpu, make_weight, rng):
    """They are what they were, and so is the weight."""
    here = make_weight(*shape, config)
    weight = here.to("cuda")
    x = emulated_gpu.asarray(rng.standard_normal((2, shape[1])).astype(np.float16))
    y = codegemm.matmul(x, weight.T, kernel=kernel).get().astype(np.float32)
    assert codegemm.compact(weight, 2, np.float16, kernel).name == kernel
    assert len(let_go(weight)) == 1
    assert np.array_equal(codegemm.matmul(x, weight.T, kernel=kernel).get(), y)
    assert weight == here
    dense = "quip" if kernel == "quip" else "dequant_dense"
    z = codegemm.matmul(emulated_gpu.asarray(np.repeat(x.get(), 40, 0)), weight.T, kernel=dense).get()
    assert np.linalg.norm(z[::40] - y) <= 3e-3 * np.linalg.norm(y)


def test_codes_are_restored_on_their_own_gpu(emulated_gpu, make_weight, monkeypatch):
    """Another one may be the current one, on which CuPy would make arrays."""
    here = make_weight(70, 256, "m1v4g64")
    weight, current = here.to("cuda"), [1]
    codegemm.compact(weight, kernel="psumbook")

    class Device(emulated_gpu.cuda.Device):
        def __enter__(self):
            current.append(self.id)

        def __exit__(self, *exception):
            current.pop()

    real = emulated_gpu.asarray

    def asarray(array):
        assert current[-1] == 0
        return real(array)

    monkeypatch.setattr(emulated_gpu.cuda, "Device", Device)
    monkeypatch.setattr(emulated_gpu.cuda.runtime, "getDevice", lambda: current[-1])
    monkeypatch.setattr(emulated_gpu, "asarray", asarray)
    assert weight == here
    assert current == [1]
