"""`quantize_file` of one file: what becomes of each tensor, what it says of it, and mistakes, which leave no file."""

import os
import re
import textwrap

import numpy as np
import pytest
from emulator import cases
from safetensors.numpy import load_file, save_file
from support.processes import python

import codegemm
from codegemm import Calibration, calibration, quantize_file
from codegemm.files import File
from codegemm.quantize import work
from codegemm.quantize.plan import Copied, Quantized

CONFIG = "m1v4b2"


@pytest.fixture
def tensors(rng):
    return {
        "a.weight": rng.standard_normal((32, 64)).astype(np.float32),
        "b.weight": rng.standard_normal((16, 30)).astype(np.float16),
        "c.weight": np.full((8, 8), np.nan, np.float32),
        "norm.weight": np.ones(64, np.float32),
        "other": rng.standard_normal((8, 8)).astype(np.float32),
        "small.weight": rng.standard_normal((1, 8)).astype(np.float16),
        "whole.weight": np.ones((4, 8), np.int8),
    }


@pytest.fixture
def existing(target):
    target.write_text("before")
    return target


def test_everything_is_told_as_it_happens(source, target, tensors):
    told = []
    done = quantize_file(source, target, CONFIG, on_tensor=told.append)
    weight = codegemm.load(target, "a")
    assert weight == codegemm.quantize(tensors["a.weight"], CONFIG)
    assert done.quantized == (
        Quantized("a.weight", "a", (32, 64), "m1v4b2g-1", weight.bits_per_weight, False, 32 * 64 * 4),
    )
    assert done.quantized[0].nbytes == weight.nbytes
    assert {one.tensor: one.reason for one in done.copied} == {
        "b.weight": "in_features=30: must be a multiple of the vector length v=4",
        "c.weight": "W: nan at [0, 0], must be finite",
        "norm.weight": None,
        "other": None,
        "small.weight": "would take 34.5 bits/weight, has 16",
        "whole.weight": "I8 [4, 8] is not a matrix of floats",
    }
    assert all(one.nbytes == tensors[one.tensor].nbytes for one in done.copied)
    assert told == [next(one for one in told if one.tensor == name) for name in File(source).tensors]
    assert sorted(told, key=str) == sorted(done.quantized + done.copied, key=str)
    assert (done.source_bytes, done.target_bytes) == (source.stat().st_size, target.stat().st_size)
    assert (done.left_out, done.resumed) == ((), 0)
    stored = load_file(target)
    for one in done.copied:
        assert np.array_equal(stored[one.tensor], tensors[one.tensor], equal_nan=True)
    assert File(target).metadata["note"] == "kept"
    assert sorted(target.parent.iterdir()) == [source, target]


def test_calibration_rotation_and_seed(source, target, tensors):
    config, seen = codegemm.CodebookConfig.parse("m1v2b2"), Calibration(64)
    seen.update(np.random.default_rng(0).standard_normal((100, 64)))
    done = quantize_file(str(source), str(target), config, calibration={"a": seen}, rotate=True, seed=3, time_limit=60)
    assert {one.name: one.calibrated for one in done.quantized} == {"a": True, "b": False}
    expected = codegemm.quantize(tensors["a.weight"], config, calibration=seen, rotate=True, seed=3)
    assert codegemm.load(target, "a") == expected
    quantize_file(source, target, "m1v2b2+rotated", include="a.weight", calibration={"a": seen}, seed=3, force=True)
    assert codegemm.load(target) == expected


def test_a_calibration_may_be_of_matrices_that_are_left_alone(source, target, tensors):
    seen = {"a": Calibration.of(np.eye(64), 1), "b": Calibration.of(np.eye(30), 1)}
    calibration.save(source.parent / "inputs.safetensors", seen)
    for given in (seen, source.parent / "inputs.safetensors"):
        done = quantize_file(source, target, CONFIG, include="a.weight", calibration=given, force=True)
        assert [one.calibrated for one in done.quantized] == [True]
        assert codegemm.load(target) == codegemm.quantize(tensors["a.weight"], CONFIG, calibration=seen["a"])


def test_include_and_exclude(source, target):
    def quantized(**arguments):
        done = quantize_file(source, target, "m1v2b2", dry_run=True, **arguments)
        return {one.name for one in done.quantized}

    assert quantized() == {"a", "b", "c"}
    assert quantized(exclude="[bc].*") == {"a"}
    assert quantized(include="a.*|o.*") == {"a", "other"}
    assert quantized(include="a.*|o.*", exclude="other") == {"a"}


@pytest.mark.parametrize("around", ["", "+rotated"])
def test_a_group_size_that_does_not_divide_a_row_becomes_smaller(around, source, target, tensors):
    seen = {"b": Calibration.of(np.eye(30), 30)}
    done = quantize_file(source, target, f"m1v2b2g12{around}", include="[ab].weight", calibration=seen)
    own = {"a": f"m1v2b2g8{around}", "b": f"m1v2b2g10{around}"}
    assert {one.name: one.config for one in done.quantized} == own
    for name, config in own.items():
        expected = codegemm.quantize(tensors[f"{name}.weight"], config, calibration=seen.get(name))
        assert codegemm.load(target, name) == expected
    for one in done.quantized:
        assert one.bits_per_weight == codegemm.load(target, one.name).bits_per_weight


def test_weights_that_are_there_already_stay(target, tensors, source):
    """Of a file that was quantised in part: its weights, their description, its version."""
    quantize_file(source, target, "m1v2b2+rotated", include="a.weight")
    whole = target.parent / "whole.safetensors"
    done = quantize_file(target, whole, CONFIG, include="other|a.*")
    assert {one.tensor: one.reason for one in done.copied if one.reason} == {
        "a.codes": "is part of a quantised weight",
        "a.scales": "is part of a quantised weight",
    }
    found = codegemm.load_all(whole)
    assert list(found) == ["a", "other"]
    assert found["a"] == codegemm.load(target)
    assert found["other"] == codegemm.quantize(tensors["other"], CONFIG)
    assert File(whole).metadata["version"] == File(target).metadata["version"] == "2"


def test_a_dry_run_says_the_same_and_writes_nothing(source, target, monkeypatch):
    before = source.read_bytes()
    planned_order, order = [], []
    with monkeypatch.context() as patched:
        patched.setattr(work, "quantize", None)
        planned = quantize_file(source, target, CONFIG, exclude="c.*", dry_run=True, on_tensor=planned_order.append)
    assert sorted(target.parent.iterdir()) == [source]
    done = quantize_file(source, target, CONFIG, exclude="c.*", on_tensor=order.append)
    assert (planned.quantized, planned.copied, planned_order) == (done.quantized, done.copied, order)
    assert planned.source_bytes == done.source_bytes == len(before)
    assert planned.target_bytes == sum(held.nbytes for held in File(target).tensors.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": "("}, "include '(': missing )"),
        ({"exclude": "("}, "exclude '(': missing )"),
        ({"include": "nothing"}, "nothing to quantise: no matrix matches include 'nothing'"),
        ({"include": "norm.*"}, "nothing to quantise: no matrix matches include 'norm.*'"),
        ({"include": "norm.*|c.*"}, "nothing to quantise: c.weight: W: nan"),
        ({"exclude": ".*"}, r"no matrix matches include '.*\\.weight' without exclude '.*'"),
        ({"include": "b.*"}, "nothing to quantise: b.weight: in_features=30"),
        ({"config": "x"}, "configuration 'x': expected"),
        ({"config": "e8p", "rotate": True}, "config 'e8p+rotated': e8p rotates without being told"),
        ({"time_limit": -1.0}, "time_limit=-1.0: must be None or seconds, at least 0"),
        ({"time_limit": float("nan")}, "time_limit=nan: must be None or seconds, at least 0"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"calibration": {"z": Calibration(64)}}, "calibration: z is none of the matrices of"),
        ({"calibration": {"norm": Calibration(64)}}, "calibration: norm is none of the matrices of"),
        ({"calibration": {"a": Calibration(32)}}, "calibration: a: in_features=32, W has 64"),
    ],
)
def test_mistakes_leave_the_target_as_it_was(arguments, message, source, existing):
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize_file(source, existing, **{"config": CONFIG, "force": True, **arguments})
    assert existing.read_text() == "before"
    assert sorted(existing.parent.iterdir()) == [source, existing]


def test_wrong_types_and_files_are_refused_first(source, target, monkeypatch, tmp_path):
    monkeypatch.setattr(work, "quantize", None)
    with pytest.raises(TypeError, match="config 8: must be of a registered format"):
        quantize_file(source, target, 8)
    with pytest.raises(TypeError, match=r"calibration: a: int, must be a codegemm\.Calibration"):
        quantize_file(source, target, CONFIG, calibration={"a": 1})
    for option, value in (("seed", "x"), ("seed", 1.5), ("seed", True), ("time_limit", "60")):
        with pytest.raises(TypeError, match=rf"{option}={value!r}: must be"):
            quantize_file(tmp_path / "nowhere", target, CONFIG, **{option: value})
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


@pytest.mark.parametrize("kind", ["itself", "link", "hard link"])
def test_what_is_read_is_never_replaced(kind, source, monkeypatch, tmp_path):
    monkeypatch.setattr(work, "quantize", None)
    inputs = tmp_path / "inputs.safetensors"
    calibration.save(inputs, {"a": Calibration.of(np.eye(64), 1)})
    for read in (source, inputs):
        before, target = read.read_bytes(), tmp_path / "target"
        if kind == "itself":
            target = tmp_path / "." / read.name
        elif kind == "link":
            target.symlink_to(read)
        else:
            os.link(read, target)
        with pytest.raises(codegemm.CheckpointError, match=f"would replace .*{read.name}, which is read"):
            quantize_file(source, target, CONFIG, calibration=inputs, force=True)
        assert read.read_bytes() == before
        (tmp_path / "target").unlink(missing_ok=True)


def test_an_existing_target_is_replaced_only_by_force(source, existing, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(work, "quantize", None)
        for dry_run in (False, True):
            with pytest.raises(codegemm.CheckpointError, match="exists, and is replaced only by force"):
                quantize_file(source, existing, CONFIG, dry_run=dry_run)
    assert existing.read_text() == "before"
    quantize_file(source, existing, CONFIG, force=True)
    assert list(codegemm.load_all(existing)) == ["a"]


def test_a_target_that_comes_to_be_there_meanwhile_is_not_replaced(source, target):
    with pytest.raises(codegemm.CheckpointError, match="exists"):
        quantize_file(source, target, CONFIG, on_tensor=lambda one: target.write_text("of somebody else"))
    assert target.read_text() == "of somebody else"
    target.unlink()
    assert quantize_file(source, target, CONFIG).resumed == 1


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
def test_more_matrices_than_files_may_be_open(tmp_path):
    """What is finished waits in files of its own, which must not all be open when the target is written."""
    save_file({f"{i}.weight": np.full((4, 16), i, np.float32) for i in range(150)}, tmp_path / "in")
    script = f"""
        import resource, codegemm
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        done = codegemm.quantize_file({str(tmp_path / "in")!r}, {str(tmp_path / "out")!r}, "m1v4b1")
        print(len(done.quantized))
    """
    done = python("-c", textwrap.dedent(script), timeout=120)
    assert done.stdout == "150\n", done.stderr
    assert len(codegemm.load_all(tmp_path / "out")) == 150


def test_outcomes_are_data():
    one = Quantized("a.weight", "a", (3, 8), "m1v4g-1", 5.0, False, 96)
    assert (one.size, one.nbytes) == (24, 15)
    assert Copied("b", None, 4).reason is None
