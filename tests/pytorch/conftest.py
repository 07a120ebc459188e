"""Fresh random tensors in every test."""

import pytest


@pytest.fixture(autouse=True)
def torch_seed(rng):
    """Torch's numbers are fresh as `rng`'s are: its own are the same in every run."""
    pytest.importorskip("torch").manual_seed(int(rng.integers(1 << 31)))
