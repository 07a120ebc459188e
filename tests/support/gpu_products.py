"""The products of `test_gpu.py`, apart from it so that what they launch can be compiled on another machine."""

import itertools
from functools import cache

from codegemm.arrays import float_dtype
from codegemm.devices import FIRST_GPU
from codegemm.formats.format import spec_of
from codegemm.kernel import Product
from codegemm.registry import kernel_for, refusal, registered
from codegemm.testing.problems import Problem

DTYPES = ("float16", "bfloat16", "float32")
CASES = [
    # rows, columns, configuration, parts
    (256, 512, "m1v4g128", 1),
    (100, 1024, "m2v8g128", 1),
    (77, 7, "m8v1b1g1", 1),
    (50, 96, "m1v3b2g3", 1),
    (100, 180, "m3v5b5g15", 1),
    (300, 96, "m1v4b3g12", 3),
    (31, 528, "m2v11b7g-1", 1),
    (130, 4096, "m2v8g-1", 2),
    (5, 4864, "m1v4g4", 1),
    (3000, 64, "m1v4b6g32", 2),
    (1, 1280, "m4v16b8g80", 1),
]
LARGE = [
    (14336, 4096, "m1v4g128", 1),
    (4096, 14336, "m2v8g128", 1),
    (6144, 4096, "m2v8g-1", 3),
    (512, 28672, "m1v4g32", 1),
]
# Every kernel with every weight that it takes, batches and dtypes in turn.
WEIGHTS = [
    *CASES,
    (96, 1024, "m1v8b16g-1", 1),
    (65, 512, "m1v16b12g64", 1),
    (100, 480, "m1v4b4g48", 1),
    (40, 256, "m3v8b2g16", 1),
    (50, 1024, "m2v8g-1", 1),
    (64, 128, "e8p", 1),
    (64, 128, "qtip", 1),
    (224, 1536, "qtip3", 1),
    (384, 1536, "e8p", 1),
    (100, 1024, "q1g32", 1),
    (130, 4096, "q2g128", 2),
    (65, 480, "q3v5g15+rotated+added", 1),
    (96, 4096, "m2v8g128+rotated+offsets", 1),
    (100, 480, "m1v4b4g48+terms3", 1),
    (65, 512, "m2v8g-1+rotated64+added", 1),
    (100, 480, "m1v4g48+ordered", 1),
    (96, 4096, "m2v8g128+ordered+rotated+offsets", 1),
]


REPLAYED = ("m1v4g128", "m2v8g-1", "e8p", "qtip", "q2g128", "m1v4g128+rotated+offsets")
# What other tests multiply, by whichever kernel: the weight, rows of x, their dtypes.
OTHERS = [
    ((100, 512, "m2v4g64", 1), (1, 2, 4), ("float32",)),
    ((4096, 4096, "m2v8g128", 1), (1, 2), DTYPES),
    ((4096, 4096, "m1v4g128", 1), (1, 2), ("float16",)),
    ((256, 512, "m1v4g128", 1), (1, 4), ("float16",)),
    *(((1024, 1024, config, 1), (1, 4, 16, 64), ("float16",)) for config in REPLAYED),
]


def every_kernel():
    """(kernel, weight, rows of x, their dtype)."""
    turns = itertools.cycle(itertools.product((1, 3, 9, 33, 64, 100), DTYPES))
    return [(kernel.name, case, *next(turns)) for kernel in registered("cuda") for case in WEIGHTS]


def psumbook():
    """The same of the Psumbook kernel: all that it must be right for."""
    small = [("psumbook", case, n, dtype) for case in CASES for n in (1, 2, 3, 4) for dtype in DTYPES]
    return small + [("psumbook", case, n, "float16") for case in LARGE for n in (1, 2, 4)]


def others():
    """The same of all other tests' products."""
    names = [kernel.name for kernel in registered("cuda")]
    return [
        (name, case, n, dtype)
        for case, batches, dtypes in OTHERS
        for name in names
        for n in batches
        for dtype in dtypes
    ]


def kernel_named(name, spec):
    """What multiplies such weights under that name on a GPU."""
    [kernel] = [kernel for kernel in registered("cuda") if kernel.name == name]
    return kernel_for(kernel, spec)


def fewest(kernel, spec, n, dtype):
    """The product with n rows of x, or halves of it, that the kernel takes; None if it takes none."""
    while n:
        product = Product.of(spec, n, float_dtype(dtype))
        if not refusal(kernel, product, FIRST_GPU):
            return product
        n //= 2
    return None


@cache
def spec_of_case(case):
    """The spec of its weight, of which only one that was joined need be made."""
    rows, columns, config, parts = case
    return Problem(*case).weight(0).spec if parts > 1 else spec_of((rows, columns), config)


def builds():
    """What the products above compile, by kernels' own account."""
    each = {}
    for name, case, n, dtype in every_kernel() + psumbook() + others():
        spec = spec_of_case(case)
        kernel = kernel_named(name, spec)
        product = fewest(kernel, spec, n, dtype)
        each |= dict.fromkeys(kernel.builds(product, FIRST_GPU) if product else ())
    return list(each)
