"""Products of 16-bit integers: the kernel's source with AVX512_VNNI in imitation, and as it is compiled for it."""

import copy
import platform
import re
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulator import cases
from support.cpu import check_apart, of_any_size, product

import codegemm
from codegemm.engines.cpu import compiler, dequant, isa
from codegemm.formats import random_weight

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of another processor")

IMITATION = Path(__file__).parent / "integers" / "imitation.hpp"
SETS = {each.name: each for each in isa.ALL}
MOST, EXACT = 2e-4, 3e-6  # errors of integers and of floats


@pytest.fixture
def imitated(monkeypatch, fresh_engine):
    if SETS["avx512"] not in isa.available():
        pytest.skip("the imitation is of registers of 64 bytes")
    version = zlib.crc32(IMITATION.read_bytes())  # compiled anew where it changes
    # Optimised little: to compile it takes longer than to run it.
    flags = (*SETS["avx512"].flags, "-O1", "-include", str(IMITATION), f"-DVERSION={version}")
    monkeypatch.setattr(isa, "chosen", lambda: replace(SETS["vnni"], flags=flags))


def relative_errors(weight, x):
    """Of each row of x."""
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    y = product(weight, x, "dequant", np.float32).astype(np.float64)
    return np.linalg.norm(y - truth, axis=1) / np.linalg.norm(truth, axis=1)


@pytest.mark.parametrize(
    ("rows", "columns", "config", "whole"),
    [
        ((150, 23), 624, "m1v4g-1", True), ((97,), 480, "m1v12b6g96", True), ((130,), 528, "m1v8b12g-1", True),
        ((200,), 768, "m2v8g128", True), ((65,), 1056, "m1v16b9g96", True), ((300,), 192, "m2v8b5g96", True),
        ((70,), 390, "m3v13b6g26", False), ((150,), 624, "m1v4g24", False), ((33,), 160, "m8v1b8g32", False),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("imitated")
def test_any_configuration_in_imitation(rows, columns, config, whole, rng):
    """In integers where a block of columns has one scale and sums are not far from the largest that there may be.
    (No weight's random numbers are near the border of that: a case is of one kind whatever they are.)"""
    weight = codegemm.concat([random_weight((each, columns), config, int(rng.integers(1 << 31))) for each in rows])
    for n in (9, 33, 70, 300):
        x = rng.standard_normal((n, columns)).astype(rng.choice([np.float16, np.float32, np.float64]))
        found = relative_errors(weight, x)
        assert found.max() <= (MOST if whole else EXACT), n
        assert (np.median(found) > 1e-5) == whole


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("config", ["m1v1b1", "m1v4b2", "m2v8b2", "m3v16b1", "m8v2b1"])
@pytest.mark.usefixtures("imitated")
def test_the_largest_sums_that_there_are(config, sign, make_weight, rng):
    """All weights are the largest and all of x is alike, so that nothing cancels: the sums fill 32 bits."""
    weight = make_weight(70, 256, config)
    largest = np.full_like(weight.codebooks, 1.9990234375)
    for size in (1, 1 / 1.9990234375, rng.uniform(0.5, 1)):
        books = (size * largest).astype(np.float16)
        weight = codegemm.CodebookWeight(weight.codes, books, weight.scales)
        assert relative_errors(weight, np.full((9, 256), sign, np.float32)).max() <= MOST
        assert relative_errors(weight, sign * rng.uniform(0.9, 1, (9, 256)).astype(np.float32)).max() <= MOST


@pytest.mark.usefixtures("imitated")
def test_x_of_any_size_in_imitation(make_weight, rng):
    weight = make_weight(200, 512, "m2v8g-1")
    assert relative_errors(weight, of_any_size(rng, 30)).max() <= MOST
    assert not product(weight, np.zeros((9, 512)), "dequant").any()


@pytest.mark.usefixtures("imitated")
def test_what_is_not_finite_stays_in_its_row_of_integers(make_weight, rng):
    """Of x, and of y in float16, whose other numbers stay right."""
    weight = make_weight(70, 264, "m1v4g-1")
    x = rng.standard_normal((20, 264)).astype(np.float32)
    check_apart(weight, x, "dequant")
    large = (2000 * x).astype(np.float16)
    truth = large.astype(np.float64) @ weight.dequantize(np.float64).T
    y = product(weight, large, "dequant", np.float16)
    inside = abs(truth) < 65000
    assert not inside.all()
    np.testing.assert_allclose(y[inside], truth[inside], rtol=1e-3, atol=MOST * np.linalg.norm(truth, axis=1).max())
    assert np.isinf(y[abs(truth) > 66000]).all()


@pytest.mark.usefixtures("imitated")
def test_bias_threads_and_copies_of_integers(make_weight, rng):
    weight = make_weight(130, 256, "m1v4g64")
    x, bias = rng.standard_normal((90, 256)).astype(np.float32), rng.standard_normal(130).astype(np.float32)
    x[5, :32] *= 1e6  # multiplied again
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T + bias
    before, found = codegemm.get_num_threads(), set()
    for threads in (1, 3):
        codegemm.set_num_threads(threads)
        y = codegemm.linear(x, weight, bias, kernel="dequant")
        found.add(y.tobytes())
    codegemm.set_num_threads(before)
    found.add(codegemm.linear(x, copy.deepcopy(weight), bias, kernel="dequant").tobytes())
    codegemm.compact(weight)
    found.add(codegemm.linear(x, weight, bias, kernel="dequant").tobytes())
    assert len(found) == 1
    assert (np.linalg.norm(y - truth, axis=1) <= MOST * np.linalg.norm(truth, axis=1)).all()


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
def test_the_loop_that_is_compiled(tmp_path):
    """It keeps its sums in registers."""
    path = tmp_path / "dequant.s"
    options = (*compiler.FLAGS, *SETS["vnni"].flags, "-S", "-o", str(path))
    subprocess.run(["g++", *options, str(dequant.SOURCE)], check=True)
    loops = re.findall(r"^(\.L\d+):\n((?:(?!\.L\d+:).*\n)*?)\tj\w+\t\1$", path.read_text(), re.M)
    [multiply] = [body for _, body in loops if body.count("\tvpdpwssd") == 26]
    assert not re.search(r"zmm\d+, \d*\(%rsp\)", multiply)
    assert multiply.count("vpbroadcastd") == 13
