"""`codegemm explore`: which configurations are tried, what is on the front, and the command as a user runs it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import codegemm
from codegemm import calibration
from codegemm.cli import cli
from codegemm.exploration import measure as exploring
from codegemm.exploration import plot, runner
from codegemm.exploration.candidates import MOST, candidates, others
from codegemm.exploration.matrices import Matrix
from codegemm.exploration.runner import pareto
from codegemm.measuring import stopwatch
from codegemm.quantize import stored
from codegemm.quantize.quantizers import E8PQuantizer


@settings(max_examples=30)
@given(
    st.integers(1, 400),
    st.integers(1, 800),
    st.lists(st.sampled_from([1, 1.5, 2, 3, 4, 6]), min_size=1, max_size=3),
)
def test_candidates_fit_their_budgets(rows, columns, bits):
    found = candidates((rows, columns), bits)
    assert len(found) == len(set(found)) <= MOST * len(bits)
    for config in found:
        size = config.bits_per_weight(rows, columns)  # raises where the shape can't hold it
        assert any(budget - 0.5 <= size <= budget + 0.25 for budget in bits)


@pytest.mark.parametrize("shape", [(4096, 4096), (14336, 4096), (1536, 384)])
def test_two_bits_are_first_of_all_those_of_the_literature(shape):
    found = {str(config) for config in candidates(shape, [2])}
    assert found >= {"m1v4g-1", "m1v4g128", "m2v8g-1", "m2v8g128"}


@settings(max_examples=60)
@given(st.lists(st.tuples(*3 * [st.integers(0, 4)]), max_size=12))
def test_the_front_is_what_nothing_beats(points):
    for point, front in zip(points, pareto(points), strict=True):
        beaten = any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        assert front != beaten


def test_labels_do_not_overlap(rng):
    points = rng.uniform(0, 600, (20, 2))
    sizes = [(40.0, 9.0)] * len(points)
    corners = np.array(plot.place(points, sizes, (-100, -100, 800, 800)))
    for i, (x, y) in enumerate(corners):
        for left, bottom in corners[:i]:
            assert abs(x - left) >= 40 - 1e-6 or abs(y - bottom) >= 9 - 1e-6


@pytest.fixture
def folder(tmp_path, monkeypatch, emptied_cache, rng):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "candidates", lambda *a: [config for config in candidates(*a) if config.m < 3][:4])
    monkeypatch.setattr(stopwatch, "_CACHE_FACTOR", {"cpu": 0})  # thousands of copies of such small weights
    tensors = {"a.weight": rng.standard_normal((96, 64), np.float32), "zero.weight": np.zeros((8, 64), np.float32)}
    save_file(tensors | {"odd.weight": np.ones((5, 3), np.float32)}, tmp_path / "dense.safetensors")
    return tmp_path


def explore(*arguments):
    return CliRunner().invoke(
        cli, ["explore", "dense.safetensors", "--engine", "cpu", "--seconds", "0.01", *map(str, arguments)]
    )


def test_a_second_run_quantises_nothing(folder, monkeypatch):
    arguments = ("--tensor", "a.weight", "--bits", "2", "--json", "out.json")
    first = explore(*arguments)
    assert first.exit_code == 0, first.output
    found = json.loads((folder / "out.json").read_text())
    monkeypatch.setattr(stored, "quantize", None)
    monkeypatch.setattr(exploring, "quantized", None)
    again = explore(*arguments)
    assert again.exit_code == 0, again.output
    assert json.loads((folder / "out.json").read_text()) == found
    assert (folder / "explore.png").read_bytes().startswith(b"\x89PNG")
    [matrix] = found["matrices"]
    points = [(one["bits_per_weight"], one["error"], one["seconds"]) for one in matrix["candidates"]]
    assert [one["front"] for one in matrix["candidates"]] == pareto(points)
    assert matrix["candidates"][0]["config"] in first.output
    one, original = matrix["candidates"][0], load_file(folder / "dense.safetensors")["a.weight"]
    gap = original - codegemm.quantize(original, one["config"]).dequantize()
    assert one["error"] == pytest.approx(np.linalg.norm(gap) ** 2 / np.linalg.norm(original) ** 2, rel=1e-4)


def test_calibrated_and_rotated(folder, rng):
    seen = codegemm.Calibration(64)
    seen.update(rng.standard_normal((500, 64)) @ rng.standard_normal((64, 64)))
    calibration.save(folder / "inputs.safetensors", {"a": seen})
    done = explore("--tensor", "a.weight", "--bits", "1", "--calibration", "inputs.safetensors", "--rotate")
    assert done.exit_code == 0, done.output
    assert "output MSE" in done.output
    assert "+rotated" in done.output


def test_other_formats_are_tried_where_their_quantisers_can(rng, monkeypatch):
    values = rng.standard_normal((384, 768)).astype(np.float32)
    seen = codegemm.Calibration(768)
    seen.update(values)
    for shape, found in (((384, 768), ["e8p", "e8p3", "qtip", "qtip3"]), ((100, 768), []), ((96, 704), [])):
        tried = [str(config) for config in others(shape, [2, 3])]
        assert [config for config in tried if config[0] != "q" or config.startswith("qtip")] == found
        assert any(config.startswith("q2g") for config in tried)
    plain = runner._candidates(Matrix("a", values), [2, 3], True)
    assert {"e8p", "qtip", "qtip3", "m1v4g-1", "m1v4g-1+rotated"} <= set(plain)
    assert not {"e8p3", "e8p+rotated", "qtip+rotated"} & set(plain)
    assert {"e8p", "qtip"} <= set(runner._candidates(Matrix("a", values, seen), [2], False))
    monkeypatch.setattr(E8PQuantizer, "calibrates", lambda *config: False)
    calibrated = runner._candidates(Matrix("a", values, seen), [2], False)
    assert "qtip" in calibrated
    assert "e8p" not in calibrated


def test_ctrl_c_keeps_what_is_finished(folder, monkeypatch):
    measure, calls = exploring.Bench.measure, []

    def interrupted(self, candidate):
        calls.append(candidate)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, candidate)

    monkeypatch.setattr(exploring.Bench, "measure", interrupted)
    done = explore("--tensor", "a.weight", "--bits", "2")
    assert done.exit_code == 130
    assert "more were not measured" in done.output
    assert str(calls[0]) in done.output
    assert len(list((folder / "cache" / "measured").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bits", "0"), "0.0 is not in the range 0.5<=x<=8"),
        (("--bits", "99"), "99.0 is not in the range 0.5<=x<=8"),
        (("--bits", "abc"), "'abc' is not a valid float"),
        (("--seconds", "nan"), "nan is not a number of at least 0"),
        (("--tensor", "b.weight"), "no tensor 'b.weight'"),
        (("--tensor", "zero.weight"), "all its elements are zero"),
        (("--tensor", "odd.weight"), "no configuration stores 5 x 3"),
        (("--output", "no folder/x.png"), "there is no folder"),
        (("--calibration", "dense.safetensors"), "holds no calibration"),
        (("--output", "link.png"), "link.png: would replace dense.safetensors, which is read"),
        (("--output", "drawn.svg"), "drawn.svg: pictures are PNG"),
        (("--json", "./dense.safetensors"), "would replace dense.safetensors, which is read"),
        (("--calibration", "inputs", "--json", "inputs"), "inputs: would replace inputs, which is read"),
        (("--tensor", "a.weight", "--rows", "0"), "0"),
    ],
)
def test_mistakes_are_named_before_work_begins(arguments, message, folder, monkeypatch):
    monkeypatch.setattr(exploring.Bench, "measure", None)
    (folder / "inputs").write_text("sums")
    (folder / "link.png").symlink_to(folder / "dense.safetensors")
    done = explore(*arguments)
    assert (folder / "inputs").read_text() == "sums"
    assert done.exit_code not in (0, 130)
    assert message in done.output + str(done.exception)


def test_a_file_that_is_not_there(folder):
    done = CliRunner().invoke(cli, ["explore", "none.safetensors"])
    assert done.exit_code != 0
    assert "no such file" in done.output + str(done.exception)
