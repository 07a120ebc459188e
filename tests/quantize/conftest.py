"""Matrices and files that are quantised; what is in files is each module's own `tensors`."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.gaussian import normal


@pytest.fixture
def gaussian() -> np.ndarray:
    """A matrix [256, 1024] in float32, the test's own."""
    return normal().copy()


@pytest.fixture
def source(tensors: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """A file of somebody else's."""
    save_file(tensors, tmp_path / "in.safetensors", {"note": "kept", "format": "pt"})
    return tmp_path / "in.safetensors"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where nothing is yet."""
    return tmp_path / "out.safetensors"
