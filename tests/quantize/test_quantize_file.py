"""`quantize_file`: what becomes of each tensor, what it says of it, and mistakes, which leave no file."""

import re
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import codegemm
from codegemm import Calibration, quantize_file
from codegemm.quantize import file as quantizing
from codegemm.quantize.file import Quantized

CONFIG = "m1v4b2"


@pytest.fixture
def tensors(rng):
    return {
        "a.weight": rng.standard_normal((32, 64)).astype(np.float32),
        "b.weight": rng.standard_normal((16, 30)).astype(np.float16),
        "c.weight": np.full((8, 8), np.nan, np.float32),
        "norm.weight": np.ones(64, np.float32),
        "other": rng.standard_normal((8, 8)).astype(np.float32),
    }


@pytest.fixture
def source(tensors, tmp_path):
    save_file(tensors, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


@pytest.fixture
def target(tmp_path):
    (tmp_path / "out.safetensors").write_text("before")
    return tmp_path / "out.safetensors"


def test_everything_is_told_as_it_happens(source, target, tensors):
    told = []
    done = quantize_file(source, target, CONFIG, on_tensor=told.append)
    weight = codegemm.load(target, "a")
    assert weight == codegemm.quantize(tensors["a.weight"], CONFIG)
    assert done.quantized == (Quantized("a.weight", "a", (32, 64), weight.bits_per_weight, False),)
    assert {one.tensor: one.reason for one in done.copied} == {
        "b.weight": "in_features=30: must be a multiple of the vector length v=4",
        "c.weight": "W: nan at [0, 0], must be finite",
        "norm.weight": "F32 [64] is not a matrix of floats",
        "other": None,
    }
    assert sorted(told, key=str) == sorted(done.quantized + done.copied, key=str)
    assert (done.source_bytes, done.target_bytes) == (source.stat().st_size, target.stat().st_size)
    stored = load_file(target)
    for one in done.copied:
        assert np.array_equal(stored[one.tensor], tensors[one.tensor], equal_nan=True)


def test_calibration_rotation_and_seed(source, target, tensors):
    config, seen = codegemm.CodebookConfig.parse("m1v2b2"), Calibration(64)
    seen.update(np.random.default_rng(0).standard_normal((100, 64)))
    done = quantize_file(str(source), str(target), config, calibration={"a": seen}, rotate=True, seed=3, time_limit=60)
    assert {one.name: one.calibrated for one in done.quantized} == {"a": True, "b": False}
    expected = codegemm.quantize(tensors["a.weight"], config, calibration=seen, rotate=True, seed=3)
    assert codegemm.load(target, "a") == expected
    quantize_file(source, target, "m1v2b2+rotated", include="a.weight", calibration={"a": seen}, seed=3)
    assert codegemm.load(target) == expected


def test_the_source_may_be_the_target(source):
    before = source.stat().st_size
    done = quantize_file(source, source, CONFIG, include="other|a.weight")
    assert sorted(codegemm.load_all(source)) == ["a", "other"]
    assert (done.source_bytes, done.target_bytes) == (before, source.stat().st_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": "("}, "include '(': missing )"),
        ({"include": "nothing"}, "nothing to quantise: no matrix matches include 'nothing'"),
        ({"include": "norm.*|c.*"}, "nothing to quantise"),
        ({"config": "x"}, "configuration 'x': expected"),
        ({"config": "e8p", "rotate": True}, "config 'e8p+rotated': e8p rotates without being told"),
        ({"config": "e8p", "calibration": {}}, "config 'e8p': takes no calibration"),
        ({"time_limit": -1.0}, "time_limit=-1.0: must be None or seconds, at least 0"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"calibration": {"z": Calibration(64)}}, "calibration: z is none of the matrices to quantise"),
        ({"calibration": {"a": Calibration(32)}}, "calibration: a: in_features=32, W has 64"),
    ],
)
def test_mistakes_leave_the_target_as_it_was(arguments, message, source, target):
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize_file(source, target, **{"config": CONFIG, **arguments})
    assert target.read_text() == "before"
    assert sorted(target.parent.iterdir()) == [source, target]


def test_wrong_types_and_files_are_refused_first(source, target, monkeypatch, tmp_path):
    monkeypatch.setattr(quantizing, "quantize", None)
    with pytest.raises(TypeError, match="config 8: must be of a registered format"):
        quantize_file(source, target, 8)
    with pytest.raises(TypeError, match=r"calibration: a: int, must be a codegemm\.Calibration"):
        quantize_file(source, target, CONFIG, calibration={"a": 1})
    for arguments, message in (
        ((tmp_path / "nowhere", target), "nowhere: no such file"),
        ((source, tmp_path / "no" / "out"), "there is no folder"),
        ((source, tmp_path), "is a folder"),
    ):
        with pytest.raises(codegemm.CheckpointError, match=message):
            quantize_file(*arguments, CONFIG)
    save_file({"a": np.ones((4, 8)), "a.weight": np.ones((4, 8))}, source)
    with pytest.raises(ValueError, match=r"both a and a\.weight match include 'a\.\*'"):
        quantize_file(source, target, CONFIG, include="a.*")


def test_an_interrupt_leaves_the_target_as_it_was(source, target):
    with pytest.raises(KeyboardInterrupt):
        quantize_file(source, target, CONFIG, on_tensor=Mock(side_effect=KeyboardInterrupt))
    assert target.read_text() == "before"
