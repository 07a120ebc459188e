"""Quantise a matrix and multiply by it as NumPy does by a dense one."""

import numpy as np

import codegemm


def error(y, truth):
    return np.linalg.norm(y - truth) / np.linalg.norm(truth)


rng = np.random.default_rng(0)
W = rng.standard_normal((256, 1024), np.float32)  # [out_features, in_features]
x = rng.standard_normal((4, 1024), np.float32)

w = codegemm.quantize(W, "m1v4g128")  # 1 codebook, vectors of 4, a scale for 128 weights
y = x @ w.T

print(f"{w.nbytes} bytes in place of {W.nbytes}: {w.bits_per_weight:.2f} bits a weight")
print(f"error of the product: {error(y, x @ w.dequantize().T):.0e}; that of quantising: {error(y, x @ W.T):.2f}")
