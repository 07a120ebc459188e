"""Quantised weights in the user's cache: what was quantised once is read from there."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import cache
from codegemm.calibration import Calibration
from codegemm.formats.format import parse
from codegemm.formats.weight import Weight
from codegemm.quantize import quantize
from codegemm.quantize.quantizers import quantizer_for
from codegemm.storage import load, save_all


def quantized(matrix: npt.NDArray, config: Any, seed: int, *, calibration: Calibration | None = None) -> Weight:
    """`codegemm.quantize` of matrix [out_features, in_features], kept in the cache."""
    key = cache.key(*key_parts(matrix, calibration), made(config), str(seed))
    entry = cache.lookup("weights", key, ".safetensors")
    if entry is None:
        weight = quantize(matrix, config, seed=seed, calibration=calibration, progress=False)
        entry = cache.store("weights", key, ".safetensors", lambda path: save_all(path, {"weight": weight}))
    return load(entry)


def key_parts(matrix: npt.NDArray, calibration: Calibration | None) -> tuple[str, ...]:
    """What a cache's key says of a matrix and of the calibration."""
    return digest(matrix), "" if calibration is None else digest(calibration.H)


def made(config: Any) -> str:
    """What a cache's key says of a configuration and its quantiser."""
    config = parse(config)
    return f"{config} by {quantizer_for(config).identity(config)}"


def digest(array: npt.NDArray) -> str:
    """A hash of an array's values, dtype and shape."""
    hashed = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    hashed.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()
