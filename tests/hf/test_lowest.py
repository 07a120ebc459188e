"""The least version of transformers that is supported, which lies beside the one that the other tests take."""

import os

import pytest
from emulator.cases import ALL
from support import ROOT
from support.processes import python

LOWEST = ROOT / ".venv" / "lowest"
# Those that show it, of each of the parts that speak with transformers.
TESTS = [
    "test_loading.py",
    "test_experts.py",
    "test_refused.py",
    "test_aqlm_folders.py",
    "test_decoding.py",
    "test_quantize_model.py",
]


@pytest.mark.skipif(not ALL, reason="for make test-all")
def test_the_lowest_version():
    if not LOWEST.is_dir():
        pytest.skip("it is not installed: make .venv/transformers-lowest")
    paths = os.pathsep.join(map(str, [LOWEST, ROOT, ROOT / "tests"]))
    done = python("-c", "import transformers; print(transformers.__version__)", env=os.environ | {"PYTHONPATH": paths})
    assert done.stdout.strip() == "5.19.0", done.stderr
    named = [str(ROOT / "tests" / "hf" / name) for name in TESTS]
    run = python("-m", "pytest", "-q", "-p", "no:xdist", *named, env=os.environ | {"PYTHONPATH": paths})
    assert run.returncode == 0, run.stdout[-3000:]
    assert "skipped" not in run.stdout.splitlines()[-1], run.stdout[-3000:]
