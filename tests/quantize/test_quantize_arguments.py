"""What `quantize` is given: mistakes are named, options mean what they say."""

import importlib.util

import numpy as np
import pytest
from emulator import cases
from support.backends import needs_torch
from support.gaussian import relative_mse

import codegemm
from codegemm.quantize import arithmetic


@pytest.mark.parametrize(
    ("matrix", "config", "kind", "message"),
    [
        (np.ones(64), "m1v4", ValueError, r"W: shape \(64,\), must be"),
        (np.ones((0, 64)), "m1v4", ValueError, r"W: shape \(0, 64\)"),
        (np.ones((4, 64), int), "m1v4", TypeError, "W: dtype int64, must be one of"),
        (np.full((4, 64), np.nan), "m1v4", ValueError, r"W: nan at \[0, 0\], must be finite"),
        (
            np.full((4, 64), 1e39),
            "m1v4",
            ValueError,
            r"W: the largest weight of row 0 is 1e\+39, must be a normal float32",
        ),
        (np.full((4, 64), np.inf), "m1v4", ValueError, r"W: inf at \[0, 0\], must be finite"),
        (np.eye(4, 64) * 1e-39, "m1v4", ValueError, "W: the largest weight of row 0 is 1e-39, must be a normal"),
        (np.ones((4, 62)), "m1v4", ValueError, "in_features=62: must be a multiple of the vector length v=4"),
        (np.ones((4, 64)), "m1v4g48", ValueError, "in_features=64: must be a multiple of the group size g=48"),
        (np.ones((4, 64)), "m1v4g128x", ValueError, "configuration 'm1v4g128x': expected"),
        (np.ones((4, 64)), 3, TypeError, "config 3: must be"),
        (np.ones((4, 64)), "e8p", ValueError, "out_features=4: E8P needs a multiple of 16"),
        (np.ones((16, 60)), "e8p", ValueError, "in_features=60: E8P needs a multiple of 64"),
        (np.ones((16, 64)), "qtip", ValueError, "out_features=16: QTIP needs a multiple of 32"),
        (np.ones((4, 64)), "m2v8b16", ValueError, "needs a table of 64.0 GiB, at most 1 are allowed"),
        (np.full((4, 64), 1e30), "m1v4", ValueError, r"W: the largest weight is 1e\+30, .* do not fit float16 scales"),
        (np.full((4, 64), 1e-30), "m1v4", ValueError, "W: the largest weight is 1e-30, .* do not fit float16 scales"),
        (
            np.diag([1, 1e-12]),
            "m1v2",
            ValueError,
            "W: the largest weight is 1, .* from 7.07e-13 to 0.707: these do not",
        ),
        (np.full((16, 64), 3e38), "e8p", ValueError, "do not fit float32"),
        (np.full((32, 64), 3e38), "qtip", ValueError, "do not fit float32"),
    ],
)
def test_mistakes_are_named(matrix, config, kind, message):
    with pytest.raises(kind, match=message):
        codegemm.quantize(matrix, config)


@pytest.mark.parametrize(
    ("option", "value", "kind", "message"),
    [
        ("time_limit", -1, ValueError, "time_limit=-1: must be None or seconds, at least 0"),
        ("time_limit", float("nan"), ValueError, "time_limit=nan: must be None or seconds, at least 0"),
        ("time_limit", "60", TypeError, "time_limit='60': must be None or seconds, a number of at least 0"),
        ("time_limit", True, TypeError, "time_limit=True: must be None or seconds"),
        ("on_interrupt", "stop", ValueError, "on_interrupt='stop': must be 'raise' or 'return'"),
        ("backend", "gpu", ValueError, "backend 'gpu': must be None or one of numpy, torch, cuda"),
        ("backend", 1, ValueError, "backend 1: must be None or one of numpy, torch, cuda"),
        ("seed", "x", TypeError, "seed='x': must be an integer of at least 0"),
        ("seed", 1.5, TypeError, "seed=1.5: must be an integer of at least 0"),
        ("seed", True, TypeError, "seed=True: must be an integer of at least 0"),
        ("seed", None, TypeError, "seed=None: must be an integer of at least 0"),
        ("seed", -1, ValueError, "seed=-1: must be at least 0"),
    ],
)
def test_wrong_options_are_refused_first(option, value, kind, message):
    """Before the matrix is looked at."""
    with pytest.raises(kind, match=message):
        codegemm.quantize(None, "m1v4", **{option: value})


def test_numpys_numbers_are_numbers(gaussian):
    part = gaussian[:32, :64]
    for config in ("m1v4b4", "m1v4b4+rotated", "e8p", "qtip"):
        found = codegemm.quantize(part, config, seed=np.uint8(3), time_limit=np.float32(60))
        assert found == codegemm.quantize(part, config, seed=3)


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
@needs_torch
def test_torch_and_numpy_are_equally_good(gaussian):
    part = gaussian[:128]
    for config in ("m1v4b6g64", "m2v8b6g-1", "m3v4b4g32"):
        by_numpy, by_torch = (
            relative_mse(part, codegemm.quantize(part, config, backend=b)) for b in ("numpy", "torch")
        )
        assert by_torch == pytest.approx(by_numpy, rel=0.005)


@needs_torch
def test_torch_gives_the_same_on_any_number_of_threads(gaussian):
    import torch

    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(codegemm.quantize(gaussian[:64], "m2v8b6g64", backend="torch"))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_size_decides_the_backend():
    """Not what is imported: the result of a matrix must not depend on that."""
    assert arithmetic.find(None, 1 << 12).name == "numpy"
    installed = importlib.util.find_spec("torch") is not None
    assert arithmetic.find(None, 1 << 22).name == ("torch" if installed else "numpy")


def test_a_backend_that_is_not_there(monkeypatch):
    monkeypatch.setattr(arithmetic, "find_spec", lambda name: None)
    assert arithmetic.find(None, 1 << 30).name == "numpy"
    with pytest.raises(ValueError, match="backend 'torch': torch is not installed"):
        arithmetic.find("torch", 1)
