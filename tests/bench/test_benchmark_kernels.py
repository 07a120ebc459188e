"""`pytest benchmarks`: its grid is that of the paper's experiments, each weight is there once and alone."""

import gc
import json
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
from support import ROOT

from benchmarks import grid, held
from codegemm import baselines
from codegemm.engines.cpu import Psumbook
from codegemm.formats import parse
from codegemm.formats.format import spec_of
from codegemm.measuring import memory
from codegemm.registry import registered
from codegemm.reproduction import ALL, building, tiling
from codegemm.reproduction.cells import ANY, Cell, shape_of
from codegemm.reproduction.paper import published
from codegemm.reproduction.runner import products

ENGINES = ("cpu", "cuda")


def test_every_product_of_the_paper_is_a_cell_once():
    found = products([ALL])
    assert len(set(found)) == len(found)
    for name in ("table8", "table10"):
        paper = published(name)
        assert {Cell(shape_of(row), column) for row in paper.rows for column in paper.columns} <= set(found)
    layers = [(14336, 4096), (4096, 14336), (4096, 4096), (1024, 4096)]
    table9 = published("table9")
    for row in table9.rows:
        wanted = {Cell(shape, column, int(row.split()[1])) for shape in layers for column in table9.columns}
        assert wanted <= set(found)
    assert {Cell((28672, 8192), row) for row in published("table3").rows} <= set(found)
    # Those of tiles and of tables alone have no times of their own, but their products are there.
    for shape in published(building.NAME).columns:
        assert {Cell(shape_of(shape), config) for config in published(building.NAME).rows} <= set(found)
    assert {Cell(tiling.SHAPE, config) for config in published(tiling.NAME).rows} <= set(found)
    assert {cell.batch for cell in found} == {1, 4, 8, 16}


@pytest.mark.parametrize("engine", ENGINES)
def test_benchmarks_are_those_of_the_cells(engine):
    found = grid.benchmarks(engine)
    assert len({each.name for each in found}) == len(found)
    baseline = {kernel.name for kernel in baselines.KERNELS}
    for cell in products([ALL]):
        config = str(parse(cell.method.config or ANY))
        its = {
            each.kernel for each in found if (each.shape, each.batch, each.config) == (cell.shape, cell.batch, config)
        }
        if cell.method.ours:  # by all of this project's kernels
            assert {"psumbook", "dequant", "dequant_dense"} <= its - baseline
        else:
            assert cell.method.kernel in its
    places = {(cell.shape, cell.batch) for cell in products([ALL])}
    assert {(each.shape, each.batch) for each in found} == places
    for each in found:
        spec_of(each.shape, each.config)  # raises ValueError for what can't be stored so


@pytest.mark.parametrize("engine", ENGINES)
def test_a_weights_benchmarks_follow_one_another(engine):
    def turns(values):
        return [value for value, before in zip(values, [None, *values]) if value != before]

    found = grid.benchmarks(engine)
    for quick in (False, True):
        weights = turns([(each.shape, each.config) for each in found if each.quick or not quick])
        assert len(set(weights)) == len(weights)
        kernels = turns([(each.shape, each.config, each.kernel) for each in found if each.quick or not quick])
        assert len(set(kernels)) == len(kernels)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_quick_part_has_every_kernel(engine):
    found = grid.benchmarks(engine)
    quick = [each for each in found if each.quick]
    assert {each.kernel for each in quick} == {each.kernel for each in found}
    assert {each.shape for each in quick} == set(grid.QUICK_SHAPES)
    assert {each.batch for each in quick} == set(grid.QUICK_BATCHES)
    assert len(quick) <= 64  # half a second each


def test_names_tell_benchmarks_apart():
    shape = (4096, 1024)
    assert grid.Benchmark(shape, "m1v4g128", "psumbook", 4).name == "4096x1024-n4-psumbook-m1v4g128"
    assert grid.Benchmark(shape, "m1v4g128", "dense", 16).name == "4096x1024-n16-dense"


def test_one_weight_at_a_time():
    weights = held.Weights("cpu", 4)
    first = weights.held((64, 128), "m1v4g128")
    assert weights.held((64, 128), "m1v4g128") is first
    gone = weakref.ref(first.weight)
    del first
    other = weights.held((64, 128), "m2v8g-1")
    gc.collect()
    assert gone() is None
    assert (other.spec.name, other.x.shape) == ("m2v8g-1", (4, 128))


@pytest.mark.parametrize("config", ["m1v4g128", "e8p", "qtip", "q2g128"])
def test_the_truth_is_that_of_the_weight(config, rng):
    """Of every format of the grid: right for `dense` and wrong for another's products."""
    weights = held.Weights("cpu", 3)
    its = weights.held((320, 256), config)
    kernels = {kernel.name: kernel for kernel in registered("cpu")}
    kernel, product = its.product(kernels["dense"], int(rng.integers(1, 4)))
    y = its.candidate(kernel, product).ready(its.x[: product.n]).result()
    assert its.truth.error(y) <= kernel.tolerance(product)
    y[rng.integers(product.n), rng.choice([0, 319])] = np.nan  # rows of W that are always looked at
    assert not its.truth.error(y) <= 1


def test_one_form_of_a_weight_is_kept():
    its = held.Weights("cpu", 2).held((64, 128), "m1v4g128")
    dense, psumbook = (kernel for kernel in registered("cpu") if kernel.name in ("dense", "psumbook"))
    for kernel in (dense, psumbook):
        for batch in (1, 2):
            its.candidate(*its.product(kernel, batch))
        assert {key[0] for key in its.weight.memo} == {kernel}


def test_what_a_kernel_refuses_is_said():
    its = held.Weights("cpu", 1).held((64, 128), "e8p")
    with pytest.raises(ValueError, match="it multiplies CodebookWeights"):
        its.product(Psumbook(), 1)


def test_too_little_memory_is_said(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 20)
    weights = held.Weights("cpu", 16)
    with pytest.raises(
        MemoryError, match=r"^28672 x 8192 m2v8g128: needs at least .* GB, and 0.0 GB of memory are free"
    ):
        weights.held((28672, 8192), "m2v8g128")
    its = weights.held((64, 128), "m2v8g128")
    dense = next(kernel for kernel in registered("cpu") if kernel.name == "dense")
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match=r"^64 x 128 m2v8g128 dense: needs at least .* GB"):
        its.candidate(*its.product(dense, 1))


def test_two_runs_are_compared(tmp_path):
    """The command as people give it, for two kernels and one that is missing."""
    # pytest-benchmark does not measure beneath pytest-xdist.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = outside | {"CODEGEMM_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "pytest", "benchmarks/test_kernels.py", "-q", "-rs", "-p", "no:cacheprovider",
        "-k", "1024x4096-n1- and (psumbook-m1v4g128 or dense) and not dequant_dense", "--benchmark-autosave",
        f"--benchmark-storage={tmp_path}",
    ]  # fmt: skip
    for more in ([], ["--benchmark-compare", "--benchmark-compare-fail=min:10000%"]):
        done = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout
    assert "psumbook-m1v4g128] (0001_" in done.stdout
    first, second = (json.loads(path.read_text())["benchmarks"] for path in sorted(tmp_path.glob("*/*.json")))
    assert [each["fullname"] for each in first] == [each["fullname"] for each in second]
    assert {each["group"] for each in first} == {"1024 x 4096, batch 1"}
    assert {each["name"] for each in first} == {
        "test_product[1024x4096-n1-dense]", "test_product[1024x4096-n1-psumbook-m1v4g128]",
    }  # fmt: skip
    for each in second:
        told = each["extra_info"]
        assert set(told["machine"]) == {
            "engine", "device", "threads", "bandwidth", "commit", "compiler", "system",
        }  # fmt: skip
        assert told["device"] == told["machine"]["device"]
        assert told["weights"] == "m1v4g128"
        assert told["gigabytes_per_second"] == pytest.approx(told["bytes_read"] / each["stats"]["median"] / 1e9)
        assert 0 <= told["error"] < 2e-4
