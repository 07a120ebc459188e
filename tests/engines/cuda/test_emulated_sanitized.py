"""AddressSanitizer and UBSan over the emulated kernels: a sample of their tests again, in a process of its own."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from emulator import cases, emulate
from support import ROOT
from support.processes import python, under

FOLDER = "tests/engines/cuda"
# Tests of each file; those of missing barriers are meant to misbehave.
SAMPLES = ("psumbook", "dequant", "wide", "aqlm", "lutgemm", "quip", "qtip", "dense", "rules")
EACH = 8
LEFT_OUT = "without_a_barrier"
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


def sample():
    """Node ids."""
    files = [f"{FOLDER}/test_emulated_{name}.py" for name in SAMPLES]
    collected = python(*PYTEST, "--collect-only", *files, cwd=ROOT).stdout.splitlines()
    draw, chosen = random.Random(cases.SEED), []
    for file in files:
        found = [line for line in collected if line.startswith(file) and "[" in line and LEFT_OUT not in line]
        chosen += draw.sample(found, EACH)
    return chosen


@pytest.mark.skipif(emulate.SANITIZE or not cases.ALL, reason="the inner run, or not all tests")
def test_emulated_kernels_under_sanitizers():
    def check(chosen):
        options = {"EMULATOR_SANITIZE": "1", "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
        done = under(("asan", "ubsan"), *PYTEST, *(f"{ROOT}/{test}" for test in chosen), **options)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert f"{len(chosen)} passed" in done.stdout

    chosen = sample()
    with ThreadPoolExecutor() as pool:
        list(pool.map(check, (chosen[::2], chosen[1::2])))
