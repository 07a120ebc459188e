"""`codegemm reproduce`: the paper's tables beside ours, measured on the CPU, on the emulated GPU, and predicted."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from codegemm.cli import cli
from codegemm.comparison import runner as comparison
from codegemm.devices import CPU
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.formats.format import spec_of
from codegemm.kernel import Product
from codegemm.measuring import conditions, stopwatch
from codegemm.measuring.accuracy import exact, relative_error
from codegemm.measuring.stopwatch import Timing
from codegemm.products import Plan
from codegemm.reproduction import (
    NAMES,
    building,
    cells,
    efficiency,
    paper,
    plot,
    power,
    report,
    runner,
    table,
    tiling,
    tradeoff,
)
from codegemm.reproduction.cells import Cell
from codegemm.reproduction.experiments import EXPERIMENTS
from codegemm.reproduction.lab import Lab

SIZES = {28672: 512, 14336: 384, 8192: 256, 4096: 128, 2048: 128, 1024: 64}


@pytest.fixture
def small(monkeypatch):
    """The paper's matrices, each much smaller."""

    def smaller(text):
        return re.sub("|".join(map(str, SIZES)), lambda match: str(SIZES[int(match[0])]), text)

    real = paper._read()
    tables = {}
    for name, each in real["tables"].items():
        shapes = name not in ("table7",)
        columns = [smaller(column) if shapes else column for column in each["columns"]]
        tables[name] = each | {"columns": columns, "rows": {smaller(row): its for row, its in each["rows"].items()}}
    monkeypatch.setattr(paper, "_read", lambda: real | {"tables": tables})
    blocks = {name: {tuple(map(SIZES.get, shape)): n for shape, n in its.items()} for name, its in cells.BLOCKS.items()}
    monkeypatch.setattr(cells, "BLOCKS", blocks)
    monkeypatch.setattr(conditions, "settle", lambda: None)
    for name in ("_MOST_COPIES", "_GRAPH_CALLS"):
        monkeypatch.setattr(stopwatch, name, 1)
    monkeypatch.setattr(conditions, "bandwidth", lambda engine: 1e10)
    monkeypatch.setattr(conditions, "multiply_adds", lambda engine: 1e11)
    monkeypatch.setattr(efficiency, "SHAPE", (512, 256))
    monkeypatch.setattr(tiling, "SHAPE", (256, 256))
    monkeypatch.setattr(tradeoff, "SHAPE", (256, 256))
    monkeypatch.setattr(tradeoff, "GAUSSIAN", (64, 128))
    monkeypatch.setattr(tradeoff, "CONFIGS", ("m1v8g8", "m1v4g-1"))


def lab(engine="cpu", predicts=""):
    return Lab(comparison.Settings(engine, (), [""], (), 0.01, 2), predicts)


def run(names, **options):
    return runner.run(names, seconds=0.001, rounds=2, **options)


def test_the_papers_ratios():
    """Those that its text states follow from its tables."""
    made = table.Table.beside("table2", "", "", (), ratio=table.as_fast_as(0))
    ratios = made.ratios(made.paper)
    assert ratios[0][0] == 1
    assert ratios[1][-1] == pytest.approx(1111.36 / 293.82)
    assert "2512.17970" in paper.citation()


def test_every_experiment_is_there():
    numbers = {*EXPERIMENTS, efficiency.NAME, building.NAME, tiling.NAME, tradeoff.NAME}
    assert numbers == set(NAMES)
    assert paper._read()["tables"].keys() == numbers - {tradeoff.NAME}


def test_products_of_a_block():
    """q, k, v, o, gate, up and down of Llama-3 8B hold 218 million weights, of 70B 856 million."""
    for name, millions in (("Llama-3 8B", 218.1), ("Llama-3 70B", 855.6)):
        counts = cells.of_block(name, "m1v4g128")
        assert sum(counts.values()) == 7
        assert sum(n * np.prod(cell.shape) for cell, n in counts.items()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("noisy", [-1, 1e9])
def test_what_follows_from_a_noisy_time_is_marked(small, monkeypatch, noisy):
    """And what follows from none, or isn't there, is not."""
    monkeypatch.setattr(stopwatch, "NOISY", noisy)
    monkeypatch.setattr(power, "meter", lambda engine: None)
    tables = {each.name: each for each in run(["table3", "figure4"]).tables}
    for name, columns in (("table3", {"TFLOPS", "% of memory"}), ("figure4", {"time"})):
        expected = {(row, column) for row in tables[name].rows for column in columns if noisy < 0}
        assert tables[name].noisy == expected


def test_all_of_it_on_the_cpu(small, tmp_path):
    """Every cell that a kernel of this engine multiplies has a number, and JSON has them all."""
    found = run(["all"])
    assert [each.name for each in found.tables] == list(NAMES)
    assert not found.result.wrong
    assert not found.result.failed
    numbers = {each.name: each.ours for each in found.tables}
    assert np.array(numbers["table10"], float).min() > 0
    assert np.array(numbers["table9"], float).min() > 0
    assert np.array(numbers["table8"], float).min() > 0
    assert np.array(numbers["figure4"], float).min() > 0
    assert 0 < np.array(numbers["table6"], float).min() <= np.array(numbers["table6"], float).max() <= 100
    told = json.loads(json.dumps(found.as_json()))
    assert told["kind"] == "reproduction"
    assert told["machine"]["engine"] == "cpu"
    assert told["predicted"] is None
    [two] = [each for each in told["tables"] if each["name"] == "table2"]
    assert two["paper"][0] == ["Llama-3 8B", *paper.published("table2").rows["Llama-3 8B"]]
    assert two["ours"][0][1:] == [None if cell is None else pytest.approx(cell) for cell in numbers["table2"][0]]
    assert two["ratios"]["ours"][0][-1] == pytest.approx(two["ours"][0][1] / two["ours"][0][-1])
    plot.write_plot(found, tmp_path / "all.svg")
    assert b"Table 10" in (tmp_path / "all.svg").read_bytes() or (tmp_path / "all.svg").stat().st_size > 10_000


def test_a_blocks_time_is_the_sum_of_its_layers(small):
    found = run(["table2"])
    seconds = {(tuple(row.shape), row.config): row.seconds for row in found.result.rows}
    wanted = sum(n * seconds[shape, "m2v8g128"] for shape, n in cells.BLOCKS["Llama-3 8B"].items())
    [two] = found.tables
    assert two.ours[0][two.columns.index("m2v8g128")] == pytest.approx(1e6 * wanted)


def test_on_a_gpu(small, emulated_gpu, monkeypatch):
    """Which of table 7's thread blocks there are; `test_a_gpus_tiles_multiply` runs such."""
    monkeypatch.setattr(tiling, "_tiles", lambda: [(128, 64), (256, 32), (512, 32), (64, 32)])
    monkeypatch.setattr(Lab, "times", lambda self, products: [Timing((1e-6,), "graph", 1) for _ in products])
    found = run(["table7"], engine="cuda")
    [seven] = found.tables
    assert min(seven.ours[0][:2]) > 0
    assert seven.ours[0][2:] == (None, None)


@pytest.mark.parametrize(("t_w", "t_h"), [(128, 32), (128, 96), (256, 64)])
def test_a_gpus_tiles_multiply(t_w, t_h, emulated_gpu, make_weight, rng):
    weight = make_weight(200, 512, "m1v4g128")
    x = rng.standard_normal((1, 512)).astype(np.float16)
    kernel = tiling.CudaTiles(t_w, t_h)
    on_gpu = weight.to("cuda")
    y = emulated_gpu.asarray(np.full((1, 200), np.nan, np.float32))
    Plan(on_gpu, spec_product(on_gpu, np.float16), kernel)(emulated_gpu.asarray(x), out=y)
    assert relative_error(y.get(), exact(weight, x)) < 1e-3


@pytest.mark.parametrize(("vectors", "rows"), [(8, 64), (5, 1000), (32, 2048)])
def test_a_cpus_tiles_multiply(vectors, rows, make_weight, rng):
    weight = make_weight(2100, 512, "m1v4g128")
    kernel = tiling.CpuTiles(vectors, rows)
    its = kernel.cut(weight.spec)
    assert (its.tiles[1:] - its.tiles[:-1]).max() <= vectors
    x = rng.standard_normal((1, 512)).astype(np.float32)
    y = np.full((1, 2100), np.nan, np.float32)
    Plan(weight, spec_product(weight, np.float32), kernel)(x, out=y)
    assert relative_error(y, exact(weight, x)) < 2e-4


def spec_product(weight, dtype):
    return Product.of(weight.spec, 1, dtype, np.float32)


def test_predictions_are_marked(tmp_path):
    """In tables, captions, JSON, and as hatched bars; nothing is measured."""
    out = tmp_path / "p.json"
    names = ["table2", "table3", "table6"]
    done = CliRunner().invoke(cli, ["reproduce", "--predict", "h200", *names, "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert done.output.count("(ours predicted)") == 3
    assert "predicted for h200 by counts" in done.output
    assert "predicted x" in done.output
    told = json.loads(out.read_text())
    assert told["predicted"] == "h200"
    assert all(each["predicted"] for each in told["tables"])
    [two] = [each for each in told["tables"] if each["name"] == "table2"]
    assert two["ours"][0][1] > two["ours"][0][-1] > 0


def test_the_building_by_terms():
    """The CUDA kernel's shares are of the estimate that it is cut by."""
    share = building.estimated(lab("cuda", "h200"), "m2v8g128", (8192, 8192))
    assert 0 < share.percent < 100
    spec = spec_of((8192, 8192), "m2v8g128")
    cut = tiling.gpu_cut(spec, 256, 2048, KNOWN["h200"])
    assert len(cut.slices) == 4
    assert (cut.units_per_tile, cut.rows) == (1, 2)
    assert tiling.gpu_cut(spec, 64, 2048, KNOWN["h200"]) is None


def test_power(monkeypatch):
    """Joules over time of a processor whose counter begins anew once; a GPU's readings once it has warmed up."""
    counter = iter([10.0, 5.0, 7.0, 8.0])
    monkeypatch.setattr(power, "_joules", lambda: next(counter))
    assert 1 / 0.08 < power._of_processor(lambda: None, 0.05) <= 1 / 0.05
    readings = iter([100.0, *[300.0] * 100])
    monkeypatch.setattr(power, "_gpu_power", lambda: next(readings))
    assert power._of_gpu(lambda: None, 0.4) == 300
    monkeypatch.setattr(power, "_joules", lambda: None)
    monkeypatch.setattr(power, "_gpu_power", lambda: None)
    assert power.meter("cpu") is None
    assert power.meter("cuda") is None


def test_power_is_told(small, monkeypatch):
    monkeypatch.setattr(power, "meter", lambda engine: lambda call, seconds: call() and 50.0)
    [three] = run(["table3"]).tables
    column = dict(zip(three.columns, np.array(three.ours, float).T))
    assert set(column["W"]) == {50.0}
    assert column["GFLOPS/W"] == pytest.approx(column["TFLOPS"] * 1000 / 50)
    assert not three.notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table5"], "'table5' is not one of 'table2'"),
        (["--predict", "h9"], "'h9' is not one of"),
        (["--plot", "x.jpg", "table6"], "pictures are PNG or SVG"),
        (["--rounds", "0", "table6"], "0 is not in the range"),
    ],
)
def test_what_is_wrong_is_named(arguments, message):
    done = CliRunner().invoke(cli, ["reproduce", *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_a_kernel_that_is_not_there_is_named(small, monkeypatch):
    monkeypatch.setattr(cells, "registered", lambda engine: [k for k in REGISTERED(engine) if k.name != "quip"])
    found = run(["table10"])
    [ten] = found.tables
    assert {row[ten.columns.index("QuIP# e8p")] for row in ten.ours} == {None}
    assert found.missing == {"QuIP# e8p, batch 1": "the engine cpu has no kernel quip"}
    assert report.told(None, "us") == "-"


REGISTERED = cells.registered


def test_a_wrong_kernel_of_other_tiles_is_told(small, monkeypatch):
    """The other experiments' tables are there all the same."""
    monkeypatch.setattr(tiling.CpuTiles, "tolerance", lambda self, product: 1e-12)
    found = run(["table6", "table7"])
    assert [each.name for each in found.tables] == ["table6"]
    assert found.missing["table7"].startswith("psumbook_tiles, 256 x 256: error ")
    assert found.broken


def test_names_are_checked_before_anything():
    with pytest.raises(ValueError, match=r"experiment 'table1': must be one of table2, .*, all"):
        runner.run(["table1"])
    assert Cell((64, 128), "m1v4").config == "m1v4g-1"
    assert CPU.engine == "cpu"
