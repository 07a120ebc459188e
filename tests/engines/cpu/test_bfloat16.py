"""Products of bfloat16: the kernel's source with AVX512_BF16 and AMX in imitation, and as it is compiled for them."""

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
from support.errors import error

import codegemm
from codegemm.engines.cpu import KERNELS as ENGINE
from codegemm.engines.cpu import compiler, dequant, isa
from codegemm.formats import random_weight
from codegemm.testing import check_kernel

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of another processor")

IMITATION = Path(__file__).parent / "bfloat16" / "imitation.hpp"
SETS = {each.name: each for each in isa.ALL}
# Instructions and kernel, and the largest error: of three products of 8 bits each, and of one.
KERNELS = {("amx", "dequant"): 8e-6, ("amx", "dequant_fast"): 4e-3, ("bf16", "dequant_fast"): 4e-3}


@pytest.fixture(params=KERNELS, ids=" ".join)
def imitated(request, monkeypatch, fresh_engine):
    """The kernel's name and its largest error, compiled for a processor that has more than this one."""
    name, kernel = request.param
    here = isa.available()[0]
    if "avx512f" not in here.needs:
        pytest.skip("the imitation is of registers of 64 bytes")
    version = zlib.crc32(IMITATION.read_bytes())  # compiled anew where it changes
    tiles = ["-DTILES"] if name == "amx" else []
    # Optimised little: to compile it takes longer than to run it.
    flags = (*here.flags, "-O1", "-include", str(IMITATION), f"-DVERSION={version}", *tiles)
    monkeypatch.setattr(isa, "chosen", lambda: replace(SETS[name], flags=flags))
    return kernel, KERNELS[request.param]


def relative_errors(weight, x, kernel):
    """Of each row."""
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    y = product(weight, x, kernel, np.float32).astype(np.float64)
    return np.linalg.norm(y - truth, axis=1) / np.linalg.norm(truth, axis=1)


def test_any_configuration_in_imitation(imitated, rng):
    kernel, most = imitated
    shapes = [
        ((150, 23), 624, "m1v4g24"), ((64,), 390, "m3v13b6g26"), ((130,), 520, "m1v8b12g-1"), ((80,), 768, "m2v8g128"),
        ((97,), 1056, "m1v16b9g-1"), ((65,), 150, "m2v5b4g75"),
    ]  # fmt: skip
    for rows, columns, config in shapes:
        weight = codegemm.concat([random_weight((each, columns), config, int(rng.integers(1 << 31))) for each in rows])
        for n in (9, 33, 70):
            x = rng.standard_normal((n, columns)).astype(rng.choice([np.float16, np.float32, np.float64]))
            worst = relative_errors(weight, x, kernel).max()
            assert worst <= 2 * most, (config, n)  # of few rows of W
            if kernel.endswith("fast"):
                assert worst > 1e-4


@pytest.mark.parametrize(("config", "columns"), [("m1v4g128", 1920), ("m2v5b4g75", 1800)])
@pytest.mark.parametrize("rows", [1, 2, 16])
def test_few_rows_of_w(rows, config, columns, imitated, rng):
    """y may be small beside what is added up, and rounding is not: these rows of x are multiplied again."""
    kernel, _ = imitated
    weight = random_weight((rows, columns), config, int(rng.integers(1 << 31)))
    x = rng.standard_normal((300, columns)).astype(np.float32)
    size = np.linalg.norm(x, axis=1) * np.linalg.norm(weight.dequantize(np.float64)) / np.sqrt(columns)
    told = np.linalg.norm(x @ weight.dequantize(np.float64).T, axis=1) > 1e-2 * size  # others float32 can't tell
    assert (relative_errors(weight, x, kernel)[told] <= (1e-2 if kernel == "dequant_fast" else 2e-4)).all()


@pytest.mark.skipif(not cases.ALL, reason="takes minutes")
def test_the_interface_is_kept_in_imitation(imitated, rng):
    name, _ = imitated
    [kernel] = [each for each in ENGINE if each.name == name]
    check_kernel(kernel, seed=int(rng.integers(1 << 31)), tolerance=1e-2 if name == "dequant_fast" else 2e-5)


def test_codes_in_the_psumbook_kernels_order(imitated, make_weight, rng):
    kernel, most = imitated
    weight = make_weight(150, 768, "m1v4g128")
    x = rng.standard_normal((20, 768)).astype(np.float32)
    dense = x.astype(np.float64) @ weight.dequantize(np.float64).T
    codegemm.compact(weight)
    assert error(product(weight, x, kernel), dense) <= most


def test_x_of_any_size(imitated, make_weight, rng):
    """Rows far beyond what bfloat16 holds in two parts, or in one of its denormal numbers."""
    kernel, most = imitated
    weight = make_weight(200, 512, "m2v8g-1")
    assert relative_errors(weight, of_any_size(rng, 12), kernel)[[*range(3), *range(4, 40)]].max() <= 2 * most
    largest = np.full((9, 512), np.finfo(np.float32).max, np.float32)
    largest[:, ::2] *= -1
    y = product(weight, largest / 2**8, kernel)
    assert np.isfinite(y).all()


def test_what_is_not_finite_stays_in_its_row(imitated, make_weight, rng):
    kernel, _ = imitated
    weight = make_weight(70, 264, "m1v4g-1")
    x = rng.standard_normal((20, 264)).astype(np.float32)
    check_apart(weight, x, kernel)


def test_bias_and_threads_in_imitation(imitated, make_weight, rng):
    kernel, most = imitated
    weight = make_weight(130, 256, "m1v4g64")
    x, bias = rng.standard_normal((90, 256)).astype(np.float32), rng.standard_normal(130).astype(np.float32)
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T + bias
    before, found = codegemm.get_num_threads(), set()
    for threads in (1, 3):
        codegemm.set_num_threads(threads)
        y = codegemm.linear(x, weight, bias, kernel=kernel)
        assert error(y, truth) <= most
        found.add(y.tobytes())
    codegemm.set_num_threads(before)
    assert len(found) == 1


def test_other_processors_are_refused(make_weight):
    if isa.chosen().name in dequant.BFLOAT16:
        pytest.skip("this one multiplies bfloat16")
    with pytest.raises(codegemm.KernelError, match=r"instructions \w+: products of bfloat16 need amx or bf16"):
        codegemm.plan(make_weight(32, 64, "m1v4"), 16, kernel="dequant_fast")


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
@pytest.mark.parametrize("name", ["amx", "bf16"])
def test_the_loops_that_are_compiled(name, tmp_path):
    """Products keep their sums in registers, and tiles are multiplied in all the ways that there are."""
    path = tmp_path / "dequant.s"
    options = (*compiler.FLAGS, *SETS[name].flags, "-S", "-o", str(path))
    subprocess.run(["g++", *options, str(dequant.SOURCE)], check=True)
    text = path.read_text()
    if name == "amx":
        # Three products in two orders of loops, and one: four panels, one panel.
        assert len(re.findall(r"\ttdpbf16ps", text)) == (4 + 1) * (3 + 1)
        assert "vcvtneps2bf16" in text
        return
    loops = re.findall(r"^(\.L\d+):\n((?:(?!\.L\d+:).*\n)*?)\tj\w+\t\1$", text, re.M)
    multiply = [body for _, body in loops if body.count("\tvdpbf16ps") == 26]
    assert len(multiply) == 1
    assert "rsp" not in multiply[0]
    assert multiply[0].count("vpbroadcastd") == 13
