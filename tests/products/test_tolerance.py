"""What kernels say of their errors."""

import pytest
from support.kernels import Twice

from codegemm import Product
from codegemm.formats import spec_of
from codegemm.registry import kernel_for, registered


def promised(kernel, config="m1v4g32", n=1, dtype="float32"):
    """By a kernel, or the package's of that full name, for the product of n rows of x."""
    spec = spec_of((64, 128), config)
    if isinstance(kernel, str):
        [kernel] = (kernel_for(each, spec) for each in registered() if each.full_name == kernel)
    return kernel.tolerance(Product.of(spec, n, dtype))


def test_a_kernel_promises_what_is_documented_of_automatic_ones_unless_it_says_more():
    assert promised(Twice()) == promised(Twice(), n=33, dtype="bfloat16") == 2e-4
    assert promised(Twice(precision="fast")) == promised(Twice(engine="cuda", precision="fast")) == 3e-2
    on_gpu = {
        (n, dtype): promised(Twice(engine="cuda"), n=n, dtype=dtype)
        for n in (1, 2)
        for dtype in ("float16", "bfloat16", "float32")
    }
    assert on_gpu == {
        (1, "float16"): 2e-4, (1, "bfloat16"): 2e-4, (1, "float32"): 1e-3,
        (2, "float16"): 1e-3, (2, "bfloat16"): 2e-3, (2, "float32"): 1e-3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "config", "most"),
    [
        ("cpu:psumbook", "m1v4g32", 2e-4), ("cpu:psumbook_fast", "m1v4g32+rotated", 3e-2), ("cpu:quip", "e8p", 2e-4),
        ("cpu:qtip", "qtip3", 2e-4), ("cpu:lutgemm", "q2g32", 2e-4),
        ("cpu:dense_bf16", "m1v4g32", 1e-2), ("cpu:dense_bf16", "e8p", 1e-2), ("cuda:psumbook", "m2v8g-1", 1e-3),
        ("cuda:dense", "e8p+added", 3e-3), ("cuda:aqlm", "m2v8g-1", 3e-3),
        ("cuda:lutgemm", "q2g32", 3e-3), ("cuda:dequant_dense", "m1v4g32", 3e-3),
        ("cuda:dequant", "m1v4g32", 1e-3), ("cuda:dequant", "m2v8g-1", 1e-3),
    ],
)  # fmt: skip
def test_kernels_of_lower_precision_say_so(kernel, config, most):
    assert promised(kernel, config) == most


def test_what_stands_around_a_core_changes_what_is_promised_where_x_becomes_float32():
    assert promised("cuda:psumbook", "m1v4g32", 1, "float16") == 2e-4
    assert promised("cuda:psumbook", "m1v4g32+offsets", 1, "float16") == 2e-4
    assert promised("cuda:psumbook", "m1v4g32+rotated", 1, "float16") == 1e-3
    assert promised("cuda:dequant", "m2v8g-1", 1, "float16") == 1e-3  # pairs of centroids are added in fp16
    assert promised("cuda:dequant", "m1v4g32", 1, "float16") == 2e-4
