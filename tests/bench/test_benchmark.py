"""`make gpu` and `make tables` from end to end, on the emulated GPU."""

import functools
import itertools
import json
import subprocess
import sys
import warnings
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from emulator import emulate
from emulator.gpu import emulation

from benchmarks import counters, gpu, layers
from codegemm.devices import FIRST_GPU
from codegemm.engines.cuda import Psumbook, timing
from codegemm.engines.cuda.gpu import gpu_of
from codegemm.formats import random_weight
from codegemm.measuring import accuracy, stopwatch

HALF = np.dtype(np.float16)


@pytest.fixture
def quick(emulated_gpu, monkeypatch, tmp_path):
    """A GPU of 1 TB/s, a replay of one product, and tiny layers of a tiny model; where its files go."""
    bandwidths = itertools.cycle([8e11, 1e12, 9e11])
    monkeypatch.setattr(timing, "measure_bandwidth", lambda: next(bandwidths))
    monkeypatch.setattr(timing, "measure_multiply_adds", lambda: 1e14)
    monkeypatch.setattr(stopwatch, "_GRAPH_CALLS", 1)
    monkeypatch.setattr(stopwatch, "_MIN_CALLS", 2)
    monkeypatch.setattr(stopwatch, "_MAX_CALLS", 2)
    monkeypatch.setattr(gpu, "LLAMA_3", {"8b": ((64, 512), (32, 512))})
    monkeypatch.setenv("OUT", str(tmp_path))
    kernels = layers.compared_kernels("cuda", ["psumbook", "dense"])
    monkeypatch.setattr(layers, "compared_kernels", lambda engine, names: kernels)
    monkeypatch.setattr(layers, "run", _with(layers.run, batches=(1, 2), configs=("m1v4g128", "e8p")))
    return tmp_path / "emulated-gpu"


def _with(function, **named):
    return lambda *arguments: function(*arguments, **named)


def test_a_part_measures_and_leaves_its_file(quick, capsys):
    assert gpu.main(["bench-8b"]) == 0
    file, printed = sorted(quick.iterdir())
    data = json.loads(file.read_text())
    assert (file.name, printed.name) == ("bench-8b.json", "bench-8b.txt")
    assert data["bandwidths"] == [8e11, 1e12, 9e11]  # at the start and after every shape; the largest counts
    assert (data["device"], data["arch"], data["bandwidth"]) == ("emulated GPU", 90, 1e12)
    seen = {(tuple(row["shape"]), row["config"], row["kernel"], row["batch"]) for row in data["rows"]}
    for shape in ((64, 512), (32, 512)):
        for n in (1, 2):
            assert {(shape, "", "dense", n), (shape, "m1v4g128", "psumbook", n)} <= seen
    assert len(seen) == len(data["rows"]) == 2 * 2 * 2
    for row in data["rows"]:
        assert row["error"] < 1e-3
        assert row["seconds"] > 0
        assert row["times_dense"] > 0
        assert row["bandwidth_share"] == pytest.approx(row["bytes_read"] / row["seconds"] / 1e12)
        assert (row["calls"], row["timed"]) == (2, "graph")
        assert row["quartiles"][0] <= row["seconds"] <= row["quartiles"][1]
    assert not any(row["chosen"] for row in data["rows"] if row["kernel"] == "dense")
    said = capsys.readouterr().out
    compiled, _, kept = said.partition("\n")
    assert compiled.startswith("compiled what was missing in ")
    assert printed.read_text() == kept
    assert sum("x dense" in line for line in said.splitlines()) == len(seen)
    assert "auto up to N = 64: never slower than dense" in said or not any(row["chosen"] for row in data["rows"])


def test_two_runs_are_compared(quick, capsys, tmp_path):
    gpu.main(["bench-8b"])
    data = json.loads((quick / "bench-8b.json").read_text())
    for row in data["rows"]:
        row["seconds"], row["quartiles"] = row["seconds"] / 2, [second / 2 for second in row["quartiles"]]
    (tmp_path / "faster.json").write_text(json.dumps(data))
    capsys.readouterr()
    assert gpu.main(["--compare", str(quick / "bench-8b.json"), str(tmp_path / "faster.json")]) == 0
    first, *rows, last = capsys.readouterr().out.splitlines()
    assert first.startswith("emulated GPU, ")
    assert len(rows) == len(data["rows"])
    assert all("  2.00 x" in row for row in rows)
    assert last == f"{len(rows)} products, geometric mean 2.000 x"
    cuts = {"device": "another", "cuts": [row | {"cut": {"splits": n}} for n, row in enumerate(data["rows"])]}
    (tmp_path / "cuts.json").write_text(json.dumps(cuts))
    (tmp_path / "counters.json").write_text("[]")
    assert gpu.main(["--compare", *[str(tmp_path / "cuts.json")] * 2]) == 0
    first, *rows, last = capsys.readouterr().out.splitlines()
    assert first == "another -> another"
    assert len(rows) == len(data["rows"])
    for file, complaint in (("counters.json", "counters.json: must be what"), ("nothing.json", "No such file")):
        with pytest.raises(SystemExit):
            gpu.main(["--compare", *[str(tmp_path / file)] * 2])
        assert complaint in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--compare", str(quick / "bench-8b.json"), str(tmp_path / "cuts.json")])
    assert "no product is in both" in capsys.readouterr().err


def test_the_committed_results_compare(capsys):
    """Those of `cuts` too, which kept neither quartiles nor all that tells cuts apart."""
    for name, mean in (("bench-8b", "mean 1.000 x"), ("bench-70b", "mean 1.000 x"), ("cuts", "geometric mean ")):
        [file, *_] = gpu.RESULTS.glob(f"*/{name}.json")
        assert gpu.main(["--compare", str(file), str(file)]) == 0
        assert mean in capsys.readouterr().out


def test_what_no_time_is_left_for_is_told(quick, capsys):
    assert gpu.main(["bench-8b", "--seconds", "0"]) == 0
    data = json.loads((quick / "bench-8b.json").read_text())
    assert data["rows"] == []
    assert [text.partition(":")[2] for text in data["left_out"]] == [" no time was left"] * 4
    assert "left out: 64 x 512 m1v4g128: no time was left" in capsys.readouterr().out


def test_a_wrong_product_fails_the_part(quick, capsys, monkeypatch):
    bind = Psumbook.bind

    def wrong(self, prepared, product):
        return bind(self, prepared, product) if product.n == 1 else lambda *arguments: None

    monkeypatch.setattr(Psumbook, "bind", wrong)
    monkeypatch.setattr(gpu, "LLAMA_3", {"8b": ((64, 512),)})
    assert gpu.main(["bench-8b"]) == 1
    said = capsys.readouterr().out
    assert "wrong:     64 x 512    m1v4g128    N=2    psumbook" in said
    assert "failed: bench-8b" in said


def test_a_failing_kernel_leaves_the_others(quick, monkeypatch):
    monkeypatch.setattr(Psumbook, "prepare", Mock(side_effect=RuntimeError("out of luck")))
    monkeypatch.setattr(gpu, "LLAMA_3", {"8b": ((64, 512),)})
    assert gpu.main(["bench-8b"]) == 0
    data = json.loads((quick / "bench-8b.json").read_text())
    assert {row["kernel"] for row in data["rows"]} == {"dense"}
    assert data["left_out"] == ["64 x 512 m1v4g128 psumbook: RuntimeError: out of luck"]


@pytest.mark.parametrize("config", ["m1v4g128", "m2v8g-1", "m1v8b16g-1", "e8p"])
def test_truth(config, make_weight, rng):
    """Of the rows that are checked; one wrong or missing element of them is seen."""
    weight = make_weight(640, 256, config)
    x = rng.standard_normal((3, 256)).astype(HALF)
    truth = layers.Truth(weight, x)
    y = accuracy.exact(weight, x).astype(np.float32)
    assert truth.error(y) < 1e-6
    assert truth.error(y[:2]) < 1e-6
    y[2, 639] = np.nan
    assert truth.error(y[:2]) < 1e-6
    assert not truth.error(y) < 1e-2


def test_parts_are_checked(quick, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["bench-9b"])
    assert "part 'bench-9b': must be one of smoke, tests, bench-8b" in capsys.readouterr().err


def test_warnings_of_a_part_are_in_its_file_and_what_is_missing_is_compiled_before(quick, monkeypatch, capsys):
    done = []

    def run(file, seconds):
        done.append(seconds)
        warnings.warn("beware", stacklevel=1)
        return True

    monkeypatch.setattr(gpu, "PARTS", {"one": gpu.Part(run, 7, lambda: [lambda: done.append("compiled")])})
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *rest: print(message, file=sys.stderr)
        assert gpu.main([]) == 0
    assert done == ["compiled", 7]
    assert (quick / "one.txt").read_text().splitlines()[1] == "beware"
    assert "beware" in capsys.readouterr().err


def test_commands_leave_what_they_said(quick, monkeypatch, capsys):
    commands = {
        "well": "import os; print('all well', os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'])",
        "warning": "import sys; print('beware', file=sys.stderr)",
        "failing": "raise SystemExit(3)",
        "slow": "import time; print('begun', flush=True); time.sleep(60)",
    }
    parts = {
        name: gpu.Part(functools.partial(gpu._run, ["-c", command]), 1, list) for name, command in commands.items()
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main([]) == 2
    assert "failed: failing, slow" in capsys.readouterr().out
    assert (quick / "well.txt").read_text().splitlines()[1] == "all well 1"
    assert (quick / "warning.txt").read_text().splitlines()[1] == "beware"
    assert (quick / "slow.txt").read_text().splitlines()[1:3] == ["begun", "stopped after 1 s"]


NCU = f"""==PROF== Connected to process 1
"ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum","{counters.PIPE}","{counters.WAVEFRONTS}"
"","","byte","byte","",""
"0","codegemm_psumbook_4","1,024","32","60","50"
"1","codegemm_dequant","2048","0","9","7"
"""


def test_ncu_is_understood():
    first, second = counters.parse(NCU)
    assert first == {counters.WAVEFRONTS: 50, counters.PIPE: 60, counters.READ: 1024, counters.WRITTEN: 32}
    assert second[counters.WAVEFRONTS] == 7
    assert counters.parse("==ERROR== ERR_NVGPUCTRPERM") == []


@pytest.fixture
def small_products(emulated_gpu, monkeypatch):
    monkeypatch.setattr(counters, "SHAPE", (64, 512))
    monkeypatch.setattr(counters, "PRODUCTS", [("psumbook", "m1v4g128", 1), ("psumbook", "m1v4g128", 2)])


def test_counters_beside_the_emulators(small_products, monkeypatch):
    monkeypatch.setattr(counters.shutil, "which", lambda name: "/usr/bin/ncu")
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, NCU, "")

    monkeypatch.setattr(counters, "subprocess", SimpleNamespace(run=run))
    first, second = counters.run(60)
    assert [command[0] for command in commands] == ["/usr/bin/ncu"] * 2
    assert [command[-3:] for command in commands] == [["-m", "benchmarks.counters", place] for place in "01"]
    assert (first["batch"], second["batch"]) == (1, 2)
    assert (first["wavefronts"], first["pipe_wavefronts"]) == (57, 69)  # of both launches
    assert (first["dram_read"], first["dram_written"]) == (3072, 32)
    weight, x = random_weight((64, 512), "m1v4g128"), accuracy.inputs(512, 1, HALF)
    _, [report] = emulate.multiply(Psumbook(), weight, x, gpu=gpu_of(FIRST_GPU))
    shared = [counts for (_, _, space, _), counts in report.counts.items() if space == "shared"]
    assert first["emulated_wavefronts"] == sum(counts.wavefronts for counts in shared) > 0
    assert first["emulated_sector_bytes"] >= 64 * 128  # the codes alone


@pytest.mark.parametrize(
    ("ncu", "said", "warning"),
    [(None, "", "ncu is not installed"), ("ncu", "==ERROR== ERR_NVGPUCTRPERM", "refused here: ==ERROR== ERR_NVGPUCTR"),
     ("ncu", "", "refused here: it saw no launch")],
)  # fmt: skip
def test_without_counters_a_warning(ncu, said, warning, small_products, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(counters.shutil, "which", lambda name: ncu)
    done = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(counters, "subprocess", SimpleNamespace(run=lambda *command, **options: done))
    assert gpu.PARTS["counters"].run(tmp_path / "counters", 60)
    assert warning in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_the_product_that_ncu_looks_at(small_products):
    counters.multiply_once(1)
    assert len(emulation.reports) == 1
