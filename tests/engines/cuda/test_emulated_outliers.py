"""What the error of the CUDA kernels is relative to: the norm of y as it is where what is added does not cancel. A
large number in x takes no accuracy from the others where what it meets is zero."""

import dataclasses

import numpy as np
import pytest
from emulator import emulate
from support.gpu_products import kernel_named

import codegemm
from codegemm import arrays
from codegemm.engines.cuda.psumbook import MAX_N
from codegemm.testing.truth import norm, uncancelled

ONE_HALF, MORE = 2e-4, 1e-3  # as `precision="full"` says: one row of x in half precision, or more or in float32
AMPERE = dataclasses.replace(emulate.SMALL_GPU, arch=80)
CODEBOOKS = [
    # configuration, GPU, rows of x and their dtype
    ("m1v4g32", emulate.SMALL_GPU, 1, "float16"),
    ("m2v8g-1", emulate.SMALL_GPU, 2, "float32"),
    ("m1v4g16", emulate.SMALL_GPU, 4, "bfloat16"),
    ("m1v4g128", AMPERE, 6, "float16"),
    ("m2v8g-1", AMPERE, 17, "float32"),
    ("m1v3b5g12", AMPERE, 6, "bfloat16"),
    ("m1v4g128", emulate.SMALL_GPU, 33, "float16"),
    ("m2v8g-1", emulate.SMALL_GPU, 40, "float32"),
]


def error(y, weight, x):
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    return np.linalg.norm(y - truth) / norm(uncancelled(x, weight))


def allowed(x):
    return ONE_HALF if len(x) == 1 and x.dtype.itemsize == 2 else MORE


@pytest.mark.parametrize(("config", "device", "n", "dtype"), CODEBOOKS)
def test_large_channels_that_meet_zeros(config, device, n, dtype, make_weight, rng):
    weight = make_weight(64, 384, config)
    vector, v = int(rng.integers(weight.spec.vectors)), weight.config.v
    codes, codebooks = weight.codes.copy(), weight.codebooks.copy()
    codebooks[..., 0, :] = 0
    codes[:, vector] = 0
    weight = codegemm.CodebookWeight(codes, codebooks, weight.scales)
    x = rng.standard_normal((n, 384))
    x[:, vector * v] = rng.choice([300, 1e4])
    x = x.astype(arrays.float_dtype(dtype))
    y, _ = emulate.multiply(kernel_named("psumbook" if n <= MAX_N else "dequant", weight.spec), weight, x, gpu=device)
    assert norm(uncancelled(x, weight)) < 2 * np.linalg.norm(x[:, np.arange(384) // v != vector]) * np.sqrt(
        64 * weight.config.m
    )
    assert error(y, weight, x) <= allowed(x)


@pytest.mark.parametrize(
    ("name", "config", "n", "dtype"),
    [
        ("quip", "e8p", 1, "float16"),
        ("quip", "e8p4", 7, "float32"),
        ("qtip", "qtip3", 1, "float16"),
        ("qtip", "qtip", 7, "float32"),
        ("psumbook", "m1v4g32+rotated", 2, "bfloat16"),
        ("psumbook", "m1v4g32+ordered", 2, "float32"),
        ("dequant", "m2v8g-1+rotated+offsets", 6, "float16"),
    ],
)
def test_large_channels_of_transformed_weights(name, config, n, dtype, make_weight, rng):
    weight = make_weight(64, 384, config)
    x = rng.standard_normal((n, 384))
    x[:, 100] = 1e4
    x = x.astype(arrays.float_dtype(dtype))
    y, _ = emulate.multiply(kernel_named(name, weight.spec), weight, x)
    assert error(y, weight, x) <= (MORE if "+" in config else allowed(x))
