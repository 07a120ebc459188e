"""`make cpu`: its arithmetic, the products it times, and its quick form from end to end."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from emulator import cases

from benchmarks.cpu import __main__ as command
from benchmarks.cpu import compare, ggml, libggml, measured, peers, report, rounds, small, targets
from benchmarks.cpu.measured import (
    AQLM,
    AQLM_CONFIG,
    AUTO,
    DENSE,
    FAST,
    GGML,
    PSUMBOOK,
    PSUMBOOK_FAST,
    TORCH_BF16,
    TORCH_FP32,
    WHOLE_MATRIX,
    Accuracy,
    Bandwidth,
    Machine,
    Measured,
    Timed,
)
from benchmarks.cpu.targets import TARGETS, NeverSlower, Target
from benchmarks.tables import files
from benchmarks.targets import MAIN, Outcome
from codegemm.devices import CPU
from codegemm.engines.cpu import device, isa
from codegemm.formats import random_weight
from codegemm.kernel import Product
from codegemm.measuring import accuracy, conditions, stopwatch
from codegemm.products import plan
from codegemm.registry import refusal, registered

SINGLE = np.dtype(np.float32)
WIDE, TALL = (64, 128), (128, 64)
MEANS = [target for target in TARGETS if isinstance(target, Target)]


def timed(kernel, config, *seconds, shape=WIDE, threads=2, batch=1, chosen=False, chosen_fast=False, error=0.0):
    return Timed(shape, threads, kernel, config, batch, seconds, 1000, chosen, chosen_fast, error)


def here(path, best=None):
    return Machine("a processor", path, best or path, {})


def test_ratios_are_those_of_the_rounds():
    """In the second round all was slow: that is no difference between the two."""
    rows = [timed(DENSE, "", 4, 40, 6), timed(PSUMBOOK, MAIN[0], 2, 20, 2)]
    found = Measured(rows)
    assert found.ratios(rows[1], DENSE) == [2, 2, 3]
    assert found.times(rows[1], DENSE) == 2
    assert found.times(rows[1], TORCH_FP32) is None


def test_cells_and_their_geometric_mean():
    rows = []
    for shape, ratio in ((WIDE, 2), (TALL, 8)):
        rows.append(timed(DENSE, "", 8, 80, shape=shape))
        for config in MAIN:
            rows.append(timed(PSUMBOOK, config, 8 / ratio, 80 / ratio, shape=shape, chosen=True))
            rows.append(timed("dequant", config, 1e-9, 1e-9, shape=shape))
    found = Measured(rows)
    target = Target(AUTO, 2, 1, 4, DENSE)
    assert target.cells(found) == {(shape, c): r for shape, r in ((WIDE, 2), (TALL, 8)) for c in MAIN}
    outcome = target.outcome(found)
    assert outcome.found == pytest.approx(4)
    assert outcome.statement == "full, N = 1, 2 threads: times dense"
    assert target.where(found) == "2.00 to 8.00"
    assert Target(AUTO, 2, 1, 4.1, DENSE).outcome(found).is_met is False
    assert Target(AUTO, 2, 1, 3.9, DENSE).outcome(found).is_met is True


@pytest.mark.parametrize(
    "target", [Target(FAST, 2, 1, 1, DENSE), Target(AUTO, 1, 1, 1, DENSE), Target(AUTO, 2, 4, 1, DENSE)]
)
def test_what_was_not_measured_is_neither_met_nor_missed(target):
    rows = [timed(DENSE, "", 1.0)] + [timed(PSUMBOOK, config, 1.0, chosen=True) for config in MAIN]
    outcome = target.outcome(Measured(rows))
    assert (outcome.found, outcome.is_met) == (None, None)


def test_one_missing_cell_leaves_no_mean():
    found = Measured([timed(DENSE, "", 1.0), timed(PSUMBOOK, MAIN[0], 1.0, chosen=True)])
    target = Target(AUTO, 2, 1, 1, DENSE)
    assert target.cells(found) == {(WIDE, MAIN[0]): 1.0, (WIDE, MAIN[1]): None}
    assert target.outcome(found).found is None


def test_share_of_the_bandwidth_with_the_same_threads():
    row = timed(PSUMBOOK_FAST, MAIN[0], 1.0, 2.0, 4.0, chosen_fast=True)  # 1000, 500 and 250 bytes a second
    bandwidths = [Bandwidth(WIDE, 1, (1.0, 1.0, 1.0)), Bandwidth(WIDE, 2, (2000.0, 2000.0, 1000.0))]
    found = Measured([row], bandwidths=bandwidths)
    assert found.share(row) == 0.25
    outcome = Target(FAST, 2, 1, 0.2, configs=MAIN[:1]).outcome(found)
    assert outcome.found == pytest.approx(0.25)
    assert outcome.statement == "fast, m1v4g128, N = 1, 2 threads: share of the read bandwidth"


def test_aqlm_is_compared_by_its_own_weights():
    rows = [timed(AQLM, AQLM_CONFIG, 9.0, threads=1), timed(PSUMBOOK, AQLM_CONFIG, 3.0, threads=1, chosen=True)]
    [target] = [target for target in MEANS if target.against == AQLM]
    outcome = target.outcome(Measured(rows))
    assert outcome.found == pytest.approx(3)
    assert outcome.is_met
    assert outcome.statement == "full, m2v8g-1, N = 1, 1 thread: times aqlm_numba"


def test_kernels_are_compared_by_the_same_weights():
    """What `auto` takes beside `psumbook`, of each configuration."""
    rows = []
    for config, ratio in zip(MAIN, (2, 8)):
        rows += [timed(PSUMBOOK, config, ratio, batch=64), timed("tiles", config, 1, batch=64, chosen=True)]
    [target] = [target for target in MEANS if target.against == PSUMBOOK]
    assert target.outcome(Measured(rows)).found == pytest.approx(4)


def test_the_slowest_product_of_auto():
    rows = []
    for n, dense, bf16, auto in ((1, 4, 2, 1), (16, 2, 0.9, 1), (512, 1.02, 0.5, 1)):
        rows += [timed(DENSE, "", dense, batch=n), timed(TORCH_BF16, "", bf16, batch=n)]
        rows += [timed(PSUMBOOK, MAIN[0], auto, batch=n, chosen=True), timed("slow", MAIN[0], 99, batch=n)]
    found = {
        name: NeverSlower(name, most).outcome(Measured(rows))
        for name, most in ((DENSE, 512), (TORCH_BF16, 16), (TORCH_FP32, 512))
    }
    assert found[DENSE].found == 1.02
    assert found[DENSE].is_met
    assert found[DENSE].statement.endswith("(psumbook, N = 512, 64 x 128, m1v4g128)")
    assert found[TORCH_BF16].found == 0.9  # for more than 16 rows nothing is promised
    assert not found[TORCH_BF16].is_met
    assert found[TORCH_FP32].is_met is None


@pytest.mark.parametrize(
    ("dense", "is_met"),
    [
        ([0.9, 0.95, 0.98, 1.01, 1.2], True),
        ([0.9, 0.95, 0.98, 0.99, 9.0], False),
        ([0.999] * 5, False),
        ([1.0] * 5, True),
    ],
)
def test_slower_is_what_is_so_beyond_the_spread_of_the_rounds(dense, is_met, rng):
    """In more than three of four rounds, in whichever order and however slow one of them was."""
    rows = [timed(DENSE, "", *rng.permutation(dense)), timed(PSUMBOOK, MAIN[0], *[1.0] * 5, chosen=True)]
    assert NeverSlower(DENSE, 512).outcome(Measured(rows)).is_met is is_met


def test_small_layers_are_apart():
    layer = {"shape": small.SHAPES[0], "batch": 16}
    rows = [timed(TORCH_FP32, "", 1.0), timed(PSUMBOOK, MAIN[0], 2.0, chosen=True)]
    few = [timed(TORCH_FP32, "", 3.0, **layer), timed(PSUMBOOK, MAIN[0], 2.0, chosen=True, **layer)]
    found = Measured(rows, few)
    [large, little] = [each.outcome(found) for each in TARGETS if each.against == TORCH_FP32]
    assert (large.found, large.is_met) == (0.5, False)
    assert (little.found, little.is_met) == (1.5, True)
    assert found.shapes == [WIDE]


SETS = [each.name for each in isa.ALL]


def test_targets_are_of_instruction_sets_that_there_are():
    assert {name for target in TARGETS for name in target.sets} <= set(SETS)


@pytest.mark.parametrize("path", [*SETS, "another"])
def test_a_machine_is_held_to_the_targets_of_its_set(path):
    held = [target for target in TARGETS if targets.holds(target, here(path))]
    assert [target for target in TARGETS if not target.sets] == [target for target in held if not target.sets]
    assert all(path in target.sets for target in held if target.sets)
    shares = {target.least for target in held if target.against is None}
    assert shares == ({0.60, 0.72} if path in ("vbmi", "bf16", "amx") else set())
    told = {outcome.statement for outcome in targets.outcomes(Measured(), here(path))}
    assert told == {target.outcome(Measured()).statement for target in held}


def test_dense_products_take_the_best_set_whatever_ours():
    [target] = [target for target in MEANS if target.against == TORCH_BF16 and "avx2" in target.sets]
    assert targets.holds(target, here("avx2", "vbmi"))
    assert not targets.holds(target, here("avx2", "amx"))
    other = Target(AUTO, 2, 1, 1, DENSE, sets=("avx2",))
    assert targets.holds(other, here("avx2", "amx"))
    [never, *_] = [target for target in TARGETS if isinstance(target, NeverSlower) and not target.sets]
    assert targets.holds(never, here("avx2"))
    assert not targets.holds(never, here("avx2", "vnni"))


def test_others_are_told_with_the_targets():
    other = Outcome("host: 8 us / plan", 1.25, 1.0)
    assert targets.outcomes(Measured(others=[other]), here("avx2"))[-1] is other


def test_what_is_timed():
    one, two = (rounds.cases(threads, rounds.FULL_SIZE.batches) for threads in rounds.THREADS)
    assert {case.batch for case in one} == {1}
    for each in (one, two):
        assert len(set(each)) == len(each)
        timed_once = {(case.kernel, case.config) for case in each if case.batch == 1}
        assert {(kernel, config) for kernel in (AUTO, PSUMBOOK, FAST) for config in MAIN} <= timed_once
        assert {(GGML, config) for config in ggml.CONFIGS} <= timed_once
        assert {(AUTO, AQLM_CONFIG), (AQLM, AQLM_CONFIG)} <= timed_once
        assert {name for name, _ in timed_once} >= set(WHOLE_MATRIX)
    by_kernel = {name: [case.batch for case in two if case.kernel == name] for name in (*WHOLE_MATRIX, PSUMBOOK)}
    assert by_kernel[DENSE] == by_kernel[TORCH_FP32] == [1, 4, 8, 16, 64, 128, 256, 512]
    assert by_kernel[TORCH_BF16] == [1, 4, 8, 16]
    assert set(by_kernel[PSUMBOOK]) == {1, 4, 8, 16, 64}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.subject} {target.rows} {target.against}")
def test_each_target_has_its_products(target):
    cases = rounds.cases(target.threads, rounds.FULL_SIZE.batches)
    dense = {(case.kernel, case.batch) for case in cases if case.kernel in WHOLE_MATRIX}
    if isinstance(target, NeverSlower):
        batches = [n for n in (small.BATCHES if target.small else rounds.FULL_SIZE.batches) if n <= target.most]
        assert max(batches) == target.most
        assert target.small or {(target.against, n) for n in batches} <= dense
        return
    for config in target.configs:
        assert rounds.Case(target.kernel, config, target.batch) in cases
        if target.against in WHOLE_MATRIX:
            assert (target.against, target.batch) in dense
        elif target.against:
            assert rounds.Case(target.against, config, target.batch) in cases


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
            timed(PSUMBOOK, MAIN[0], 1.0, chosen=True, error=1e-4),
            timed(PSUMBOOK, MAIN[1], 1.0, chosen=True, error=3e-4),
            timed(PSUMBOOK_FAST, MAIN[0], 1.0, chosen_fast=True, error=1e-2),
            timed(PSUMBOOK_FAST, MAIN[1], 1.0, chosen_fast=True, error=2e-2),
            timed(GGML, ggml.CONFIGS[0], 1.0, error=0.5),
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
        "64 x 128 m2v8g128 psumbook_fast N=1: error 2.0e-02",
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
def small_cache(monkeypatch):
    """A cache that few copies of the weights fill, and a bandwidth that takes no time to measure."""
    monkeypatch.setattr(device, "last_level_cache", lambda: 1 << 20)
    monkeypatch.setattr(device, "measure_bandwidth", lambda: 1e10)


@pytest.fixture
def without_peers(monkeypatch):
    installed = peers._is_installed
    monkeypatch.setattr(peers, "_is_installed", lambda package: package != "aqlm" and installed(package))
    monkeypatch.setattr(ggml, "installed", lambda: None)


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
def test_the_quick_form(small_cache, without_peers, tmp_path, capsys):
    before = [kernel.name for kernel in registered("cpu")]
    assert command.main(["--quick", "--json", str(tmp_path)]) == 0
    assert [kernel.name for kernel in registered("cpu")] == before
    path = tmp_path / f"cpu-{isa.chosen().name}.json"
    data = json.loads(path.read_text())
    assert data["machine"]["device"] == device.name()
    for name, words in ((AQLM, ("aqlm", peers.INSTALL)), (GGML, ("llama-cpp-python", libggml.INSTALL))):
        assert all(word in data["left_out"][name] for word in words)
    with_fast = PSUMBOOK_FAST in before
    assert (PSUMBOOK_FAST in data["left_out"]) is not with_fast
    for shape in rounds.QUICK.shapes:
        rows = [row for row in data["rows"] if tuple(row["shape"]) == shape]
        for threads in rounds.THREADS:
            seen = {(row["kernel"], row["config"]) for row in rows if row["threads"] == threads and row["batch"] == 1}
            assert {(DENSE, ""), *((PSUMBOOK, config) for config in (*MAIN, AQLM_CONFIG))} <= seen
            assert ((PSUMBOOK_FAST, MAIN[0]) in seen) is with_fast
        for taken in ("chosen", "chosen_fast"):
            chosen = {(row["batch"], row["config"]) for row in rows if row[taken] and row["threads"] == 2}
            assert {(n, config) for n in (1, 8, 16) for config in MAIN} <= chosen
        for row in rows:
            assert len(row["seconds"]) == rounds.QUICK.rounds
            assert min(row["seconds"]) > 0
            assert row["error"] < 1.5e-2
    assert {(found["precision"], found["x"]) for found in data["accuracies"]} == {
        (precision, x) for precision in ("full", "fast")[: 1 + with_fast] for x in ("normal", rounds.OUTLIERS)
    }
    machine, found = measured.read(path)
    held = sum(targets.holds(target, machine) for target in TARGETS)
    assert len(data["others"]) > 0
    assert len(data["targets"]) == held + len(data["others"])
    if TORCH_FP32 not in found.left_out:
        own = {(row.config, row.batch) for row in found.small if row.chosen}
        assert own == {(config, n) for config in MAIN for n in small.BATCHES}
        assert max(row.error for row in found.small) < 2e-4
    said = capsys.readouterr().out
    assert f"{device.name()}, instruction set {isa.chosen().name}" in said
    for target in TARGETS:
        assert f"{target.subject} " in said
    assert f"left out: {AQLM}" in said

    assert command.main(["--read", str(path), "--compare", str(path)]) == 0
    again = capsys.readouterr().out
    assert "geometric mean 1.00, the least 1.00" in again
    assert report.heading(found, machine)[0] in again


def test_a_run_is_read_as_it_was_written(rng, tmp_path):
    rows = [timed(DENSE, "", *rng.random(3)), timed(PSUMBOOK, MAIN[0], *rng.random(3), chosen=True, error=1e-5)]
    few = [timed(PSUMBOOK, MAIN[1], *rng.random(3), chosen=True, shape=small.SHAPES[0])]
    found = Measured(
        rows, few, [Bandwidth(WIDE, 2, tuple(rng.random(3)))], [Accuracy("full", "normal", WIDE, MAIN[0], 1e-5, 2e-4)],
        [Outcome("host", 1.5, 1.0)], {AQLM: "no reason"},
    )  # fmt: skip
    machine = Machine("a processor", "avx2", "vbmi", {"codegemm": "1"}, "abc", "today", ("busy",))
    report.write_report(found, machine, tmp_path / "run.json")
    assert measured.read(tmp_path / "run.json") == (machine, found)


def test_what_is_no_number_is_read(tmp_path):
    rows = [timed(PSUMBOOK, MAIN[0], 1.0, chosen=True, error=math.nan)]
    accuracies = [Accuracy("fast", rounds.OUTLIERS, WIDE, MAIN[0], 0.5, math.inf)]
    report.write_report(Measured(rows, accuracies=accuracies), here("avx2"), tmp_path / "run.json")
    _, found = measured.read(tmp_path / "run.json")
    assert found.accuracies == accuracies
    assert found.wrong() == ["64 x 128 m1v4g128 psumbook N=1: error nan"]


@pytest.mark.parametrize("path", sorted(files.RESULTS.glob("cpu-*.json")), ids=lambda path: path.name)
def test_the_committed_runs_are_shown_and_compared(path, capsys):
    assert command.main(["--read", str(path), "--compare", str(path)]) == 0
    assert "geometric mean 1.00, the least 1.00" in capsys.readouterr().out


def test_runs_of_earlier_versions_are_read(tmp_path):
    rows = [timed(PSUMBOOK_FAST, MAIN[0], 1.0), timed(PSUMBOOK, MAIN[0], 1.0, chosen=True)]
    found = Measured(rows, bandwidths=[Bandwidth(WIDE, 2, (2000.0,))])
    report.write_report(found, here("vbmi"), tmp_path / "run.json")
    data = json.loads((tmp_path / "run.json").read_text())
    for row in data["rows"]:
        del row["chosen_fast"]
    for name in ("small", "others"):
        del data[name]
    for name in ("best", "commit", "date", "disturbances"):
        del data["machine"][name]
    (tmp_path / "run.json").write_text(json.dumps(data))
    machine, earlier = measured.read(tmp_path / "run.json")
    assert machine == here("vbmi")
    assert [row.chosen_fast for row in earlier.rows] == [True, False]


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"machine": {"path": "avx2"}, "rows": [{}]}'])
@pytest.mark.parametrize("option", ["--read", "--compare"])
def test_what_no_run_left_is_refused(option, text, tmp_path, capsys):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json: must be what"):
        command.main([option, str(tmp_path / "other.json")])
    with pytest.raises(SystemExit):
        command.main([option, str(tmp_path / "none.json")])
    assert "there is no such file" in capsys.readouterr().err


def test_runs_are_compared_by_their_ratios(capsys):
    """Of a run on a machine that is twice as fast, where one product gained and another lost; kernels may change."""

    def run(scale, first, second, kernel):
        rows = [timed(DENSE, "", scale), timed(DENSE, "", scale, batch=4)]
        rows += [timed(kernel, MAIN[0], scale * first, chosen=True), timed("dequant", MAIN[1], scale, chosen=True)]
        return Measured([*rows, timed(PSUMBOOK, MAIN[0], scale * second, batch=4)])

    new, old = run(0.5, 1, 3, "tiles"), run(1, 2, 2, PSUMBOOK)
    ratios = compare.ratios(new, old)
    assert ratios == {
        (2, AUTO, MAIN[0], 1): {WIDE: 2.0}, (2, AUTO, MAIN[1], 1): {WIDE: 1.0},
        (2, PSUMBOOK, MAIN[0], 4): {WIDE: pytest.approx(2 / 3)},
    }  # fmt: skip
    compare.print_comparison((here("avx2"), new), (here("avx2"), old))
    assert "3 products: geometric mean 1.10, the least 0.67" in capsys.readouterr().out
    compare.print_comparison((here("avx2"), new), (here("avx2"), Measured()))
    assert "no product is in both" in capsys.readouterr().out


def test_a_file_needs_its_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--json", str(tmp_path / "none" / "cpu.json")])
    assert "there is no folder" in capsys.readouterr().err


def test_in_a_folder_nothing_is_replaced(tmp_path, capsys):
    (tmp_path / f"cpu-{isa.chosen().name}.json").write_text("precious")
    with pytest.raises(SystemExit):
        command.main(["--json", str(tmp_path)])
    assert "is there already" in capsys.readouterr().err


@pytest.fixture
def ggml_format():
    if ggml.GGML.unavailable():
        pytest.skip(ggml.GGML.unavailable())
    with peers.registered():
        yield


@pytest.mark.parametrize("config", ggml.CONFIGS)
@pytest.mark.parametrize("shape", [(40, 512), (37, 256)])
def test_ggmls_products_are_those_of_its_weights(config, shape, ggml_format, rng):
    """Up to what rounding x to 8 bits costs; (37, 256) can't be arranged for vectors."""
    matrix = rng.standard_normal(shape).astype(np.float32)
    weight = ggml.GgmlWeight(ggml.quantized(matrix, config), config, shape[1])
    assert 2 < weight.bits_per_weight < 3
    assert np.linalg.norm(weight.dequantize() - matrix) < 0.5 * np.linalg.norm(matrix)
    for n in (1, 3, 16):
        x = rng.standard_normal((n, shape[1])).astype(np.float32)
        y = np.full((n, shape[0]), np.nan, np.float32)
        for threads in (1, 2):
            with conditions.threads(threads):
                plan(weight, n, SINGLE, GGML)(x, out=y)
            assert accuracy.relative_error(y, accuracy.exact(weight, x)) < 1.5e-2


def test_ggmls_random_weights(ggml_format):
    weight = random_weight((100, 256), "q2_k")
    assert weight.shape == (100, 256)
    assert weight.dequantize().std() == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="in_features=128: must be a multiple of 256"):
        random_weight((4, 128), "iq2_xxs")


def test_another_version_of_ggml_is_left_out(monkeypatch, tmp_path):
    for module in (ggml, libggml):
        monkeypatch.setattr(module, "installed", lambda: ("libggml", tmp_path))
    libggml.library.cache_clear()
    assert ggml.GGML.unavailable().startswith("ggml can't be loaded: ")
    libggml.library.cache_clear()


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
    monkeypatch.delitem(sys.modules, "aqlm", raising=False)  # the real one, of another test
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
