"""`codegemm quantize`, `info` and `cache`, run as a user runs them."""

import importlib
import os
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import ROOT
from support.processes import python

import codegemm
from codegemm import calibration

# The command of that name hides the module behind it.
doctor = importlib.import_module("codegemm.cli.doctor")


def run(*arguments, **options):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from codegemm.cli import main; main()"
    return python("-c", code, *map(str, arguments), timeout=120, **options)


def said(*arguments, **options):
    """What a command prints that succeeds."""
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tensors(tmp_path, monkeypatch, rng):
    """What is in the file in.safetensors, in the folder where commands are run."""
    monkeypatch.chdir(tmp_path)
    tensors = {
        "a.weight": rng.standard_normal((32, 64)).astype(np.float32),
        "a.bias": np.ones(32, np.float32),
        "b.weight": rng.standard_normal((16, 30)).astype(np.float16),
        "norm.weight": np.ones(64, np.float32),
        "other": rng.standard_normal((8, 8)).astype(np.float32),
    }
    save_file(tensors, "in.safetensors", {"note": "kept", "format": "pt"})
    return tensors


QUANTIZE = ("quantize", "in.safetensors", "out.safetensors")


def test_quantize_and_info(tensors):
    told = said(*QUANTIZE, "--config", "m1v4b4g32")
    assert "a.weight: [32, 64] at 2.000 bits/weight" in told
    assert "copied as it is: b.weight: in_features=30: must be a multiple of the vector length v=4" in told
    assert "copied as it is: norm.weight: F32 [64] is not a matrix of floats" in told
    assert "1 quantised, 4 copied" in told
    weight = codegemm.load("out.safetensors")
    assert weight == codegemm.quantize(tensors["a.weight"], "m1v4b4g32")
    stored = load_file("out.safetensors")
    for name in ("a.bias", "b.weight", "norm.weight", "other"):
        assert np.array_equal(stored[name], tensors[name])
    told = said("info", "out.safetensors")
    for text in ("a", "m1v4b4g32", "32 x 64", "2.000", "1 weight,"):
        assert text in told


def test_quantize_by_calibration_and_rotation(tensors):
    seen = codegemm.Calibration(64)
    seen.update(np.random.default_rng(0).standard_normal((100, 64)))
    calibration.save("inputs.safetensors", {"a": seen})
    told = said(*QUANTIZE, "--config", "m1v2b2", "--calibration", "inputs.safetensors", "--rotate")
    assert "b.weight: [16, 30] at" in told
    assert "bits/weight, without calibration: the file has none for it" in told
    found = codegemm.load_all("out.safetensors")["a"]
    assert found == codegemm.quantize(tensors["a.weight"], "m1v2b2", calibration=seen, rotate=True)


def test_quantize_takes_the_formats_names(tensors):
    said(*QUANTIZE, "--config", "m1v4g32+rotated")
    found = codegemm.load("out.safetensors")
    assert found.spec.name == "m1v4g32+rotated"
    assert found == codegemm.quantize(tensors["a.weight"], "m1v4g32+rotated")


def test_include_chooses(tensors):
    said(*QUANTIZE, "--config", "m1v2b2", "--include", "b.*")
    assert list(codegemm.load_all("out.safetensors")) == ["b"]


def test_info_prints_names_as_they_are(tmp_path, make_weight):
    make_weight(16, 64, "m1v4").save(tmp_path / "w.safetensors", "x[/b][red]y")
    assert "x[/b][red]y" in said("info", tmp_path / "w.safetensors")


MATRIX = np.ones((4, 8), np.float32)


@pytest.mark.parametrize(
    ("more", "arguments", "message"),
    [
        ({}, ["--config", "m1v4", "--include", "nothing"], "no matrix matches include 'nothing'"),
        ({}, ["--config", "m1v4", "--include", "("], "include '(': missing )"),
        ({}, ["--config", "x"], "configuration 'x': expected"),
        ({}, ["--config", "m1v2b2", "--calibration", "c.safetensors"], "c is none of the matrices to quantise"),
        ({"a": MATRIX}, ["--config", "m1v4b2", "--include", "a|a.weight"], "both a and a.weight match include"),
        ({"format.weight": MATRIX}, ["--config", "m1v4b2"], "name 'format': can't be that of a weight"),
        ({"a.codes": np.ones(3)}, ["--config", "m1v4b2"], "tensor 'a.codes': is part of a weight"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(more, arguments, message, tensors, tmp_path):
    calibration.save("c.safetensors", {"c": codegemm.Calibration.of(np.eye(64), 1)})
    save_file(tensors | more, "in.safetensors")
    done = run(*QUANTIZE, *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out.safetensors").exists()


def test_files_that_are_not_there(tmp_path):
    done = run("info", tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr == f"codegemm: {tmp_path / 'nowhere'}: no such file\n"
    done = run("quantize", tmp_path / "in", tmp_path / "no folder" / "out", "--config", "m1v4")
    assert "there is no folder" in done.stderr


def test_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path / "cache"))
    assert said("cache", "path").strip() == str(tmp_path / "cache")
    assert said("cache", "clear") == "removed 0 files, 0.0 MB\n"


def test_doctor_says_what_there_is_and_what_is_missing():
    found = said("doctor", env={**os.environ, "COLUMNS": "200"})
    for text in ("codegemm", "C++ compiler", "psumbook", "cache", "CuPy", "NVRTC", "CUDA driver", "GPU"):
        assert text in found


def test_doctor_never_fails(monkeypatch, tmp_path, fresh_engine):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(doctor.importlib.metadata, "version", Mock(side_effect=OSError("out of order")))
    monkeypatch.setattr("codegemm.devices.unavailable", lambda: "CuPy finds no usable GPU: the driver is too old")
    findings = {finding.what: finding for finding in doctor.examine()}
    assert findings["C++ compiler"].found is None
    assert "apt install g++" in findings["C++ compiler"].mend
    assert findings["GPU"].mend == "CuPy finds no usable GPU: the driver is too old"
    assert findings["codegemm"].mend == "out of order"
    assert findings["cache"].found == f"{tmp_path}: 0 files, 0.0 MB"


def test_doctor_names_the_command_that_installs(monkeypatch):
    missing = doctor.importlib.metadata.PackageNotFoundError("it")
    monkeypatch.setattr(doctor.importlib.metadata, "version", Mock(side_effect=missing))
    findings = {finding.what: finding for finding in doctor.examine()}
    assert findings["torch (the bfloat16 baseline)"].mend == "pip install 'codegemm[torch]'"
    assert findings["CuPy"].mend == "pip install 'codegemm[cuda12]' (or cuda13)"


def test_help_and_version():
    assert "compare" in said("--help")
    assert said("--version").strip() == f"codegemm, version {codegemm.__version__}"
    assert run("compare", "--nonsense").returncode == 2
