"""A Gaussian matrix, which is as hard to quantise as any of its size, and its error."""

import functools

import numpy as np

import codegemm


def relative_mse(matrix, weight):
    """Of the weight, in squares of the matrix's size."""
    return ((matrix - weight.dequantize(np.float64)) ** 2).sum() / (matrix.astype(np.float64) ** 2).sum()


@functools.cache
def normal():
    """The matrix [256, 1024] in float32; not to be written to."""
    return np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)


@functools.cache
def of_normal(config, rows=256, columns=1024):
    """A part of that matrix quantised: what others are held against."""
    return codegemm.quantize(normal()[:rows, :columns], config)
