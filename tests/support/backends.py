"""What quantisers compute with."""

import importlib.util

import pytest

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
BACKENDS = ["numpy", pytest.param("torch", marks=needs_torch)]
