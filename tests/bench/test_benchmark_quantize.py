"""`make accuracy` on small matrices: that what it measures is what it says."""

import json

import numpy as np
import pytest

import codegemm
from benchmarks.quantize import gaussian, trained


def test_a_gaussian_case_is_measured():
    row = gaussian.measure(gaussian.Case("m1v4b4", (64, 128)), "numpy")
    weight = codegemm.quantize(np.random.default_rng(0).standard_normal((64, 128), np.float32), "m1v4b4")
    assert row.bits_per_weight == weight.bits_per_weight
    assert 0.3 < row.relative_mse < 0.5
    assert row.seconds > 0
    assert row.gib > 0.01


def test_another_table_is_measured():
    rows = [gaussian.measure(gaussian.Case(f"qtip{name}", (64, 128)), None) for name in ("", gaussian.FIRST_TABLE)]
    assert [row.config for row in rows] == ["qtip", "qtip, k-means table"]
    assert {row.backend for row in rows} == {"compiled"}
    assert rows[0].relative_mse != rows[1].relative_mse < 0.075


def test_rows_take_the_place_of_older_ones():
    old = [{"config": config, "shape": [1, 4], "seconds": 1} for config in ("a", "b")]
    new = [{"config": "a", "shape": (1, 4), "seconds": 2}, {"config": "a", "shape": (2, 4), "seconds": 3}]
    assert gaussian.joined(old, new) == [new[0], old[1], new[1]]


def test_what_misses_a_target_is_named():
    row = gaussian.Row("m1v4", (1, 4), 2.0, 0.5, 10.0, 1.0, "numpy")
    assert row.misses(gaussian.Case("m1v4", mse=0.6, seconds=20)) == []
    assert row.misses(gaussian.Case("m1v4", mse=0.4, seconds=5)) == [
        "relative MSE 0.5, at most 0.4",
        "seconds 10, at most 5",
    ]


@pytest.fixture
def layers(rng):
    found = []
    for rows, columns in ((48, 64), (32, 128)):
        mix = np.eye(columns) + rng.standard_normal((columns, columns)) / 8
        seen, unseen = codegemm.Calibration(columns), codegemm.Calibration(columns)
        for side in (seen, unseen):
            side.update(rng.standard_normal((500, columns)) @ mix)
        found.append(trained.Layer(rng.standard_normal((rows, columns), np.float32), seen, unseen))
    return found


def test_ways_of_quantising_are_compared(layers, monkeypatch, tmp_path):
    monkeypatch.setattr(trained, "RESULT", tmp_path / "result.json")
    monkeypatch.setattr(trained, "layers", lambda: layers)
    monkeypatch.setattr(trained, "CASES", {"m1v4b4g16": ("maximum", "plain", "rotated calibrated", "calibrated")})
    assert trained.main() == 0
    rows = {row["way"]: row for row in json.loads((tmp_path / "result.json").read_text())["rows"]}
    assert rows["plain"]["weight_error"] < rows["maximum"]["weight_error"]
    assert rows["calibrated"]["output_error"] < 0.75 * rows["plain"]["output_error"]
    assert rows["rotated calibrated"]["bits_per_weight"] > rows["plain"]["bits_per_weight"]


def test_scales_by_maximum_are_those(layers):
    layer = layers[0]
    weight = trained.quantized(layer, "m1v4b4g16", "maximum")
    largest = np.abs(layer.weight).reshape(48, 4, 16).max(-1)
    assert np.allclose(weight.scales, largest, rtol=1e-3)
