"""Quantise with a layer's inputs in view, save the weight and load it again."""

import tempfile
from pathlib import Path

import numpy as np

import codegemm

rng = np.random.default_rng(0)
W = rng.standard_normal((256, 512), np.float32)
mixed = rng.standard_normal((64, 512), np.float32)
x = rng.standard_normal((1280, 64), np.float32) @ mixed  # numbers that depend on each other, as a layer's inputs do
seen, unseen = x[:1024], x[1024:]

calibration = codegemm.Calibration(in_features=512)
for batch in np.split(seen, 8):
    calibration.update(batch)

truth = unseen @ W.T
for name, inputs in (("plain", None), ("calibrated", calibration)):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "layer.safetensors")
        codegemm.quantize(W, "m1v4g128", calibration=inputs).save(file)
        w = codegemm.load(file)
        error = np.linalg.norm(unseen @ w.T - truth) / np.linalg.norm(truth)
        print(f"{name}: a file of {file.stat().st_size} bytes, error of the outputs {error:.2f}")
