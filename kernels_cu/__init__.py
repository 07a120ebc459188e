"""CUDA sources, compiled by the CUDA engine; imported as codegemm.kernels_cu."""

if __name__ == "kernels_cu":
    raise ImportError("import this package as codegemm.kernels_cu")

from pathlib import Path

import numpy as np

from codegemm.engines import declarations

FOLDER = Path(__file__).parent


def constant(source: str, name: str) -> int:
    """An integer that a source declares, as `declarations.constant` reads it."""
    return declarations.constant(FOLDER / source, name)


def structure(source: str, name: str) -> np.dtype:
    """A structure that a source declares, as `declarations.structure` reads it."""
    return np.dtype(declarations.structure(FOLDER / source, name))
