"""`make cpu`: its arithmetic, the products it times, and its quick form from end to end."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.cpu import __main__ as command
from benchmarks.cpu import peers, report, rounds
from benchmarks.cpu.targets import (
    AQLM,
    AQLM_CONFIG,
    AUTO,
    DENSE,
    FAST,
    FULL,
    TORCH_BF16,
    TORCH_FP32,
    WHOLE_MATRIX,
    Accuracy,
    Bandwidth,
    Measured,
    Target,
    Timed,
    median_ratio,
)
from benchmarks.targets import MAIN
from codegemm.devices import CPU
from codegemm.engines.cpu import device, isa
from codegemm.kernel import Product
from codegemm.measuring import accuracy, stopwatch
from codegemm.products import plan
from codegemm.registry import refusal, registered

SINGLE = np.dtype(np.float32)
WIDE, TALL = (64, 128), (128, 64)


def timed(kernel, config, *seconds, shape=WIDE, threads=2, batch=1, chosen=False, error=0.0):
    return Timed(shape, threads, kernel, config, batch, seconds, 1000, chosen, error)


def test_ratios_are_those_of_the_rounds():
    """In the second round all was slow: that is no difference between the two."""
    assert median_ratio([4, 40, 6], [2, 20, 2]) == 2


def test_cells_and_their_geometric_mean():
    rows = []
    for shape, ratio in ((WIDE, 2), (TALL, 8)):
        rows.append(timed(DENSE, "", 8, 80, shape=shape))
        for config in MAIN:
            rows.append(timed(FULL, config, 8 / ratio, 80 / ratio, shape=shape, chosen=True))
            rows.append(timed("dequant", config, 1e-9, 1e-9, shape=shape))
    measured = Measured(rows, [])
    target = Target(AUTO, 2, 1, 4, (DENSE, ""))
    assert measured.cells(target) == {(shape, c): r for shape, r in ((WIDE, 2), (TALL, 8)) for c in MAIN}
    outcome = measured.outcome(target)
    assert outcome.found == pytest.approx(4)
    assert outcome.statement == "full, N = 1, 2 threads: times dense"
    assert measured.outcome(Target(AUTO, 2, 1, 4.1, (DENSE, ""))).is_met is False
    assert measured.outcome(Target(AUTO, 2, 1, 3.9, (DENSE, ""))).is_met is True


@pytest.mark.parametrize(
    "target",
    [Target(FAST, 2, 1, 1, (DENSE, "")), Target(AUTO, 1, 1, 1, (DENSE, "")), Target(AUTO, 2, 4, 1, (DENSE, ""))],
)
def test_what_was_not_measured_is_neither_met_nor_missed(target):
    rows = [timed(DENSE, "", 1.0)] + [timed(FULL, config, 1.0, chosen=True) for config in MAIN]
    outcome = Measured(rows, []).outcome(target)
    assert (outcome.found, outcome.is_met) == (None, None)


def test_one_missing_cell_leaves_no_mean():
    rows = [timed(DENSE, "", 1.0), timed(FULL, MAIN[0], 1.0, chosen=True)]
    measured = Measured(rows, [])
    target = Target(AUTO, 2, 1, 1, (DENSE, ""))
    assert measured.cells(target) == {(WIDE, MAIN[0]): 1.0, (WIDE, MAIN[1]): None}
    assert measured.outcome(target).found is None


def test_share_of_the_bandwidth_with_the_same_threads():
    row = timed(FAST, MAIN[0], 1.0, 2.0, 4.0)  # 1000, 500 and 250 bytes a second
    measured = Measured([row], [Bandwidth(WIDE, 1, (1.0, 1.0, 1.0)), Bandwidth(WIDE, 2, (2000.0, 2000.0, 1000.0))])
    assert measured.share(row) == 0.25
    target = Target(FAST, 2, 1, 0.2, configs=MAIN[:1])
    assert measured.outcome(target).found == pytest.approx(0.25)
    assert str(target) == "fast, N = 1, 2 threads, m1v4g128: share of the read bandwidth"


def test_aqlm_is_compared_by_its_own_weights():
    rows = [timed(AQLM, AQLM_CONFIG, 9.0, threads=1), timed(FULL, AQLM_CONFIG, 3.0, threads=1, chosen=True)]
    [target] = [target for target in report.TARGETS if target.against == (AQLM, AQLM_CONFIG)]
    outcome = Measured(rows, []).outcome(target)
    assert outcome.found == pytest.approx(3)
    assert outcome.is_met
    assert outcome.statement == "full, N = 1, 1 thread, m2v8g-1: times aqlm_numba"


def test_the_slowest_product_of_auto():
    rows = []
    for n, dense, bf16, auto in ((1, 4, 2, 1), (16, 2, 0.9, 1), (512, 0.92, 0.5, 1)):
        rows += [timed(DENSE, "", dense, batch=n), timed(TORCH_BF16, "", bf16, batch=n)]
        rows += [timed(FULL, MAIN[0], auto, batch=n, chosen=True), timed("slow", MAIN[0], 99, batch=n)]
    found = {
        outcome.statement.split(" times ")[1].split(" ")[0]: outcome for outcome in Measured(rows, []).worst_automatic()
    }
    assert found[DENSE].found == 0.92
    assert found[DENSE].is_met  # at most 10 % slower
    assert found[DENSE].statement.endswith("(psumbook, N = 512, 64 x 128, m1v4g128)")
    assert found[TORCH_BF16].found == 0.9  # for more than 16 rows nothing is promised
    assert not found[TORCH_BF16].is_met
    assert found[TORCH_FP32].is_met is None


def test_what_is_timed():
    one, two = (rounds.cases(threads, rounds.FULL_SIZE.batches) for threads in rounds.THREADS)
    assert {case.batch for case in one} == {1}
    for cases in (one, two):
        assert len(set(cases)) == len(cases)
        timed_once = {(case.kernel, case.config) for case in cases if case.batch == 1}
        assert {(kernel, config) for kernel in (AUTO, FULL, FAST) for config in MAIN} <= timed_once
        assert {(AUTO, AQLM_CONFIG), (AQLM, AQLM_CONFIG)} <= timed_once
        assert {name for name, _ in timed_once} >= set(WHOLE_MATRIX)
    by_kernel = {
        name: [case.batch for case in two if case.kernel == name] for name in (DENSE, TORCH_FP32, TORCH_BF16, FULL)
    }
    assert by_kernel[DENSE] == by_kernel[TORCH_FP32] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert by_kernel[TORCH_BF16] == [1, 2, 4, 8, 16]
    assert set(by_kernel[FULL]) == {1, 4, 16}
    for target in report.TARGETS:  # each has its products
        cases = one if target.threads == 1 else two
        for config in target.configs:
            assert rounds.Case(target.kernel, config, target.batch) in cases


def test_a_turn_calls_once_at_least():
    calls = []
    assert stopwatch.turn(lambda: calls.append(1) or 2.0, 0.0) == (2, 1)
    assert len(calls) == 2  # one warms up


def test_outliers_are_50_times_as_large():
    normal, outliers = rounds.samples(1000).values()
    ratio = outliers / normal
    assert sorted(np.unique(ratio.round(3))) == [1, 50]
    assert ((ratio > 2).sum(axis=1) == 4).all()


def test_errors_beyond_what_is_promised_are_told():
    found = Measured(
        rows=[
            timed(FULL, MAIN[0], 1.0, chosen=True, error=1e-4),
            timed(FULL, MAIN[1], 1.0, chosen=True, error=3e-4),
            timed(AQLM, AQLM_CONFIG, 1.0, error=0.1),
            timed("dequant", MAIN[0], 1.0, chosen=True, error=math.nan),
        ],
        accuracies=[
            Accuracy("fast", "normal", WIDE, MAIN[0], 2e-2, 1.5e-2),
            Accuracy("fast", rounds.OUTLIERS, WIDE, MAIN[0], 1e-2, 1.5e-2),
        ],
    )
    assert found.wrong() == [
        "64 x 128 m2v8g128 psumbook N=1: error 3.0e-04",
        "64 x 128 m1v4g128 dequant N=1: error nan",
        "64 x 128 m1v4g128 fast, x normal: error 2.0e-02",
    ]


def test_aqlms_races_are_told():
    rows = [timed(AQLM, AQLM_CONFIG, 1.0, threads=t, error=e) for t, e in ((1, 4e-7), (1, 5e-7), (2, 4e-7), (2, 0.1))]
    assert report.aqlm_lines(rows) == [
        "aqlm_numba, 1 thread: error up to 5.0e-07, right",
        "aqlm_numba, 2 threads: error up to 1.0e-01, wrong: its threads race for the outputs",
    ]


@pytest.fixture
def small(monkeypatch):
    """A cache that few copies of the weights fill, and a bandwidth that takes no time to measure."""
    monkeypatch.setattr(device, "last_level_cache", lambda: 1 << 20)
    monkeypatch.setattr(device, "measure_bandwidth", lambda: 1e10)


def test_the_quick_form(small, monkeypatch, tmp_path, capsys):
    installed = peers._is_installed
    monkeypatch.setattr(peers, "_is_installed", lambda package: package != "aqlm" and installed(package))
    before = [kernel.name for kernel in registered("cpu")]
    assert command.main(["--quick", "--json", str(tmp_path / "cpu.json")]) == 0
    assert [kernel.name for kernel in registered("cpu")] == before
    data = json.loads((tmp_path / "cpu.json").read_text())
    assert data["machine"]["device"] == device.name()
    assert "aqlm" in data["left_out"][AQLM]
    assert peers.INSTALL in data["left_out"][AQLM]
    with_fast = FAST in before
    assert (FAST in data["left_out"]) is not with_fast
    for shape in rounds.QUICK.shapes:
        rows = [row for row in data["rows"] if tuple(row["shape"]) == shape]
        for threads in rounds.THREADS:
            seen = {(row["kernel"], row["config"]) for row in rows if row["threads"] == threads and row["batch"] == 1}
            assert {(DENSE, ""), *((FULL, config) for config in (*MAIN, AQLM_CONFIG))} <= seen
            assert ((FAST, MAIN[0]) in seen) is with_fast
        chosen = {(row["batch"], row["config"]) for row in rows if row["chosen"] and row["threads"] == 2}
        assert {(n, config) for n in rounds.QUICK.batches for config in MAIN} <= chosen
        for row in rows:
            assert len(row["seconds"]) == rounds.QUICK.rounds
            assert min(row["seconds"]) > 0
            assert row["error"] < 1.5e-2
    assert {(found["precision"], found["x"]) for found in data["accuracies"]} == {
        (precision, x) for precision in ("full", "fast")[: 1 + with_fast] for x in ("normal", rounds.OUTLIERS)
    }
    assert len(data["targets"]) == len(report.TARGETS) + 3
    said = capsys.readouterr().out
    assert f"{device.name()}, path {isa.chosen().name}" in said
    for target in report.TARGETS:
        assert str(target)[:30] in said
    assert f"left out: {AQLM}" in said


def test_a_file_needs_its_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--json", str(tmp_path / "none" / "cpu.json")])
    assert "there is no folder" in capsys.readouterr().err


NUMBA_KERNEL = '''
"""Stands for aqlm's: the same arguments, the same assertions, no numba."""
import torch

def numba_gemm_lut(input, codes, codebooks, scales, bias):
    m, size, out_group, v = codebooks.shape
    assert (size, out_group, bias) == (256, 1, None)
    assert codes.dtype == torch.int8 and input.dtype == codebooks.dtype == torch.float32
    assert scales.shape == (codes.shape[1], 1, 1, 1)
    places = codes.view(torch.uint8).long()  # [K/v, M, m]
    weight = sum(codebooks[c, places[:, :, c], 0] for c in range(m))  # [K/v, M, v]
    return torch.einsum("njt,jit->ni", input.reshape(len(input), -1, v), weight) * scales.flatten()
'''


@pytest.fixture
def aqlm_installed(monkeypatch, tmp_path):
    """A package aqlm that can't be imported as a whole, and what numba sets as its number of threads."""
    pytest.importorskip("torch")
    folder = tmp_path / "aqlm" / "inference_kernels"
    folder.mkdir(parents=True)
    (tmp_path / "aqlm" / "__init__.py").write_text("import no_such_transformers")
    (folder / "numba_kernel.py").write_text(NUMBA_KERNEL)
    monkeypatch.syspath_prepend(tmp_path)
    counts = [7]
    numba = SimpleNamespace(
        config=SimpleNamespace(NUMBA_NUM_THREADS=2), get_num_threads=lambda: counts[-1], set_num_threads=counts.append
    )
    monkeypatch.setitem(sys.modules, "numba", numba)
    monkeypatch.setitem(sys.modules, "scipy.linalg.cython_blas", SimpleNamespace())
    monkeypatch.setattr(peers, "_is_installed", lambda package: True)
    peers._multiply.cache_clear()
    yield counts
    peers._multiply.cache_clear()


@pytest.mark.parametrize("config", ["m2v8g-1", "m1v4g-1"])
def test_aqlms_kernel_gets_its_arguments(config, aqlm_installed, make_weight):
    weight, x = make_weight(48, 64, config), accuracy.inputs(64, 3, SINGLE)
    with peers.registered(), peers.threads(4):
        y = plan(weight, 3, SINGLE, AQLM)(x)
        assert aqlm_installed[-1] == 2  # it has no more
    assert aqlm_installed[-1] == 7
    assert accuracy.relative_error(y, accuracy.exact(weight, x)) < 1e-6


def test_another_version_of_aqlm_is_left_out(aqlm_installed, tmp_path):
    (tmp_path / "aqlm" / "inference_kernels" / "numba_kernel.py").unlink()
    assert peers.AQLM_NUMBA.unavailable().startswith("aqlm's numba_kernel.py can't be loaded: FileNotFoundError")


@pytest.mark.parametrize(
    ("config", "reason"),
    [("m1v4g128", "one scale a row"), ("m1v8b16g-1", "codes of 8 bits"), ("e8p", "CodebookWeights")],
)
def test_weights_that_aqlms_kernel_does_not_multiply(config, reason, make_weight, monkeypatch):
    monkeypatch.setattr(peers.AqlmNumba, "unavailable", lambda kernel: None)
    assert reason in refusal(peers.AQLM_NUMBA, Product.of(make_weight(64, 256, config).spec, 1, SINGLE), CPU)


def test_torch_in_float32(make_weight):
    pytest.importorskip("torch")
    weight, x = make_weight(48, 128, MAIN[0]), accuracy.inputs(128, 3, SINGLE)
    with peers.registered():
        y = plan(weight, 3, SINGLE, TORCH_FP32)(x)
    assert accuracy.relative_error(y, accuracy.exact(weight, x)) < 1e-6
