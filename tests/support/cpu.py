"""Products of single CPU kernels."""

import numpy as np

import codegemm
from codegemm import Product, choice
from codegemm.devices import CPU
from codegemm.testing.truth import Truth
from support.errors import FULL, TOLERANCE


def product(weight, x, kernel, out_dtype=None):
    """kernel's product in a poisoned output with a poisoned workspace, float64."""
    wanted = Product.of(weight.spec, len(x), x.dtype, out_dtype)
    chosen = choice.select(wanted, CPU, kernel)
    out = np.full((len(x), weight.shape[0]), np.nan, wanted.out_dtype)
    workspace = np.full(chosen.workspace(wanted, CPU), 0xFF, np.uint8)
    chosen.run(chosen.prepared(weight), x, out, workspace, None)
    return out


def usable(weight, n):
    return [info.name for info in codegemm.kernels(weight, n) if info.usable]


def check_products(weight, x, names, norm=None):
    """The kernels' products against the float64 definition, in terms of `norm`; of halves in float32."""
    truth = Truth(x, weight)
    for name in names:
        far = np.linalg.norm(product(weight, x, name, np.result_type(x, np.float32)) - truth.y)
        limit = TOLERANCE["cpu"].get(name, FULL) * (truth.norm() if norm is None else norm)
        assert far <= limit, (weight.spec.name, len(x), name)


def check_threads(weight, x, names, counts):
    """Every kernel's product is the same bit for bit on so many threads, one after the other."""
    before = codegemm.get_num_threads()
    try:
        for name in names:
            results = []
            for threads in counts:
                codegemm.set_num_threads(threads)
                results.append(product(weight, x, name).tobytes())
            assert len(set(results)) == 1, name
    finally:
        codegemm.set_num_threads(before)


def of_any_size(rng, most):
    """x [40, 512]: rows of very different sizes, one with a single tiny number, and one whose columns differ,
    some of them smaller by up to 2**most."""
    x = rng.standard_normal((40, 512)) * 2.0 ** rng.integers(-120, 110, (40, 1))
    x[3] = 0
    x[3, 5] = 1e-38
    wide = x.astype(np.float32)
    wide[7] *= np.float32(2.0) ** rng.integers(-most, 12, 512)
    return wide


def check_apart(weight, x, kernel):
    """What is not finite in a row of x spoils that row of y, and no bit of the others."""
    expected = product(weight, x, kernel)
    for value, row in ((np.nan, 3), (np.inf, 17), (-np.inf, 0)):
        spoilt = x.copy()
        spoilt[row, -1] = value
        y = product(weight, spoilt, kernel)
        assert not np.isfinite(y[row]).any()
        assert np.delete(y, row, 0).tobytes() == np.delete(expected, row, 0).tobytes()
