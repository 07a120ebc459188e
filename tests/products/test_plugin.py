"""The package in examples/: a kernel of a third party from its entry point to its products."""

import subprocess
import sys

import pytest
from emulator import cases
from support import ROOT
from support.processes import python

pytest.importorskip("setuptools", minversion="77")
FOLDER = ROOT / "examples" / "plugin"
TRY = """
import numpy as np, codegemm
from codegemm.formats import random_weight

assert [info.usable for info in codegemm.kernels() if (info.engine, info.name) == ("cpu", "gather")] == [True]
weight, x = random_weight((33, 64), "m2v4b6g32"), np.ones((3, 64), np.float32)
y = codegemm.matmul(x, weight.T, kernel="gather")
print(np.allclose(y, x @ weight.dequantize().T, atol=1e-4))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that it is installed in; its sources stay as they are."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "codegemm_gather.py", "README.md"):
        (source / name).write_bytes((FOLDER / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", folder / "site", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_it_is_found_by_its_entry_point_and_multiplies(installed, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{installed}:{ROOT}")
    done = python("-c", TRY)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.skipif(not cases.ALL, reason="half a minute: of all tests")
def test_its_own_test_passes(installed, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", f"{installed}:{ROOT}")
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / "test_gather.py"), cwd=tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
