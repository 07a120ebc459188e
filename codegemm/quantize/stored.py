"""Quantised weights in the user's cache: what was quantised once is read from there."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from codegemm import cache
from codegemm.config import CodebookConfig
from codegemm.formats.weight import Weight
from codegemm.quantize import quantize
from codegemm.storage import load, save_all

# Part of every key: raise it when `quantize` changes what it makes.
QUANTIZER = "2"


def quantized(
    matrix: npt.NDArray, config: CodebookConfig | str, seed: int, *, rotate: bool = False, calibration: Any = None
) -> Weight:
    """`codegemm.quantize` of matrix [out_features, in_features], kept in the cache.

    calibration: None, or what `quantize` takes, with the moments `H` [in_features, in_features] of x.
    """
    key = cache.key(*key_parts(matrix, calibration), str(config), str(rotate), str(seed))
    found = cache.lookup("weights", key, ".safetensors")
    if found is None:
        options: dict[str, Any] = {"rotate": True} if rotate else {}
        if calibration is not None:
            options["calibration"] = calibration
        weight = quantize(matrix, config, seed=seed, **options)
        found = cache.store("weights", key, ".safetensors", lambda path: save_all(path, {"weight": weight}))
    return load(found)


def key_parts(matrix: npt.NDArray, calibration: Any) -> tuple[str, ...]:
    """What a cache's key says of a matrix, of the calibration and of the quantiser."""
    return digest(matrix), "" if calibration is None else digest(calibration.H), QUANTIZER


def digest(array: npt.NDArray) -> str:
    """A hash of an array's values, dtype and shape."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()
