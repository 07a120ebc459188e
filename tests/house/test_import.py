"""Importing the package: what it drags in, how long it takes, under which names."""

import os
import statistics
import subprocess
import sys
import time

import pytest
from platformdirs import user_cache_path
from support import ROOT
from support.processes import python

HEAVY = ("cupy", "torch", "matplotlib", "transformers", "rich", "click", "safetensors", "ml_dtypes", "platformdirs")


def test_nothing_heavy_is_imported(tmp_path):
    done = python("-c", f"import sys, codegemm; print([m for m in {HEAVY!r} if m in sys.modules])", cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_multiplying_imports_no_other_library(tmp_path):
    code = (
        "import sys, numpy as np, codegemm\n"
        "from codegemm.comparison.sources import random_weight\n"
        "np.ones(64, np.float32) @ random_weight((32, 64), 'm1v4').T\n"
        "print([m for m in ('cupy', 'torch', 'matplotlib', 'transformers') if m in sys.modules])"
    )
    assert python("-c", code, cwd=tmp_path).stdout.strip() == "[]"


def test_a_gpu_needs_few_libraries(tmp_path):
    """What `make gpu` runs, where nothing but NumPy, CuPy and pytest is installed: no command line, no tables."""
    blocked = (*HEAVY[3:], "threadpoolctl", "matplotlib")
    for name in blocked:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not here')")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "import numpy as np, codegemm\n"
        "from benchmarks import counters, gpu, layers, tables\n"
        "from codegemm import prediction, tuning\n"
        "from codegemm.comparison import measure\n"
        "weight = layers.sources.random_weight((64, 512), 'm1v4g128')\n"
        "x = measure.inputs(512, 2, np.dtype(np.float16))\n"
        "assert layers.Truth(weight, x).error(x @ weight.T) < 1e-3\n"
        "codegemm.warmup([(64, 512)], [1], device='cpu')\n"
        f"print([m for m in {blocked!r} if m in sys.modules])"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("variables", [{"XDG_CACHE_HOME": "/x"}, {"HOME": "/x/y", "XDG_CACHE_HOME": ""}])
def test_the_cache_needs_no_library(variables, tmp_path, monkeypatch):
    """It is where platformdirs would put it."""
    monkeypatch.delenv("CODEGEMM_CACHE_DIR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    expected = user_cache_path("codegemm", appauthor=False)
    (tmp_path / "platformdirs.py").write_text("raise ImportError")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from codegemm import cache; print(cache.root())"
    assert python("-c", code, cwd=tmp_path).stdout.strip() == str(expected)


def test_import_is_quick(tmp_path):
    def seconds(module):
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=tmp_path)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    # The promise is 0.15 s where NumPy takes 0.1; the rest is slack for a busy machine.
    numpy = seconds("numpy")
    assert seconds("codegemm") - numpy < 0.25 * max(1, numpy / 0.1)


@pytest.mark.parametrize("name", ["baselines", "kernels_cu"])
def test_folders_have_one_name(name):
    done = python("-c", f"import {name}", cwd=ROOT)
    assert f"ImportError: import this package as codegemm.{name}" in done.stderr
    assert python("-c", f"import codegemm.{name}", cwd=ROOT).returncode == 0
    link = ROOT / "codegemm" / name
    assert os.readlink(link) == f"../{name}"


def test_public_names_are_there():
    import codegemm

    for name in codegemm.__all__:
        assert getattr(codegemm, name) is not None
    assert {"from_aqlm", "from_codegemm", "from_quip"} <= set(dir(codegemm.checkpoints))
