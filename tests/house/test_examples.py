"""The examples run, and print what they promise."""

import re
import runpy

import pytest
from emulator import cases
from support import ROOT

FOLDER = ROOT / "examples"
NAMES = sorted(file.name for file in FOLDER.glob("*.py"))


@pytest.fixture
def printed(capsys):
    """By an example, as lines."""

    def run(name):
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_numpy_product(printed):
    size, errors = printed("numpy_product.py")
    assert re.fullmatch(r"\d+ bytes in place of 1048576: 2\.\d\d bits a weight", size)
    product, quantising = re.fullmatch(r"error of the product: (\S+); that of quantising: (\S+)", errors).groups()
    assert float(product) <= 2e-4
    assert 0.2 < float(quantising) < 0.4


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
def test_torch_model(printed):
    pytest.importorskip("torch")
    *layers, size, error = printed("torch_model.py")
    assert sum("CodebookLinear(in_features=" in line for line in layers) == 2
    after, before = map(int, re.fullmatch(r"(\d+) bytes in place of (\d+)", size).groups())
    assert 10 < before / after < 16
    assert 0.1 < float(error.removeprefix("error of the outputs: ")) < 0.6


def test_transformers_model(printed):
    pytest.importorskip("transformers")
    *layers, same = printed("transformers_model.py")
    assert sum("config=m1v4g128" in line for line in layers) == 2
    assert sum("config=m1v4g64" in line for line in layers) == 1
    assert same == "the same logits: True"


def test_torch_linear(printed):
    pytest.importorskip("torch")
    y, gradient = (
        re.fullmatch(r"(.+): (\S+) from that of the dense layer", line) for line in printed("torch_linear.py")
    )
    assert (y[1], gradient[1]) == ("y [4, 256]", "the gradient of x [4, 1024]")
    assert float(y[2]) < 1e-3
    assert float(gradient[2]) < 1e-3


def test_quantize_and_save(printed):
    pattern = r"(\w+): a file of \d+ bytes, error of the outputs (\S+)"
    error = dict(re.fullmatch(pattern, line).groups() for line in printed("quantize_and_save.py"))
    assert float(error["calibrated"]) < float(error["plain"]) / 2 < 0.2


def test_compare_kernels(printed):
    pattern = r"(\w+) +(m1v4g128)? +\d+ us +(\d+\.\d\d) x dense  error (\S+)"
    rows = [re.fullmatch(pattern, line).groups() for line in printed("compare_kernels.py")]
    assert [(kernel, config) for kernel, config, _, _ in rows] == [
        ("dense", None), ("psumbook", "m1v4g128"), ("plain", "m1v4g128"),
    ]  # fmt: skip
    assert rows[0][2] == "1.00"
    assert all(float(error) <= 2e-4 for *_, error in rows)


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_short_tested_and_listed(name):
    assert len((FOLDER / name).read_text().splitlines()) < 30
    assert f"test_{name.removesuffix('.py')}" in globals()
    assert f"[{name}]({name}): " in (FOLDER / "README.md").read_text()
