"""`codegemm quantize`, `info` and `cache`, run as a user runs them."""

import importlib
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.processes import python

import codegemm
from codegemm import calibration

# The command of that name hides the module behind it.
doctor = importlib.import_module("codegemm.cli.doctor")


def run(*arguments, **options):
    return python("-c", "from codegemm.cli import main; main()", *map(str, arguments), timeout=120, **options)


@pytest.fixture
def model(tmp_path, rng):
    tensors = {
        "a.weight": rng.standard_normal((32, 64)).astype(np.float32),
        "a.bias": np.ones(32, np.float32),
        "b.weight": rng.standard_normal((16, 30)).astype(np.float16),
        "norm.weight": np.ones(64, np.float32),
        "other": rng.standard_normal((8, 8)).astype(np.float32),
    }
    save_file(tensors, tmp_path / "in.safetensors", {"note": "kept", "format": "pt"})
    return tmp_path, tensors


def test_quantize_and_info(model):
    folder, tensors = model
    done = run("quantize", folder / "in.safetensors", folder / "out.safetensors", "--config", "m1v4b4g32")
    assert done.returncode == 0, done.stderr
    assert "a.weight: [32, 64] at 2.000 bits/weight" in done.stdout
    assert "copied as it is: b.weight: in_features=30: must be a multiple of the vector length v=4" in done.stdout
    assert "copied as it is: norm.weight: F32 [64] is not a matrix of floats" in done.stdout
    assert "1 quantised, 4 copied" in done.stdout
    weight = codegemm.load(folder / "out.safetensors")
    assert weight == codegemm.quantize(tensors["a.weight"], "m1v4b4g32")
    stored = load_file(folder / "out.safetensors")
    for name in ("a.bias", "b.weight", "norm.weight", "other"):
        assert np.array_equal(stored[name], tensors[name])
    told = run("info", folder / "out.safetensors")
    assert told.returncode == 0, told.stderr
    for text in ("a", "m1v4b4g32", "32 x 64", "2.000", "1 weight,"):
        assert text in told.stdout


def test_quantize_by_calibration_and_rotation(model):
    folder, tensors = model
    seen = codegemm.Calibration(64)
    seen.update(np.random.default_rng(0).standard_normal((100, 64)))
    calibration.save(folder / "inputs.safetensors", {"a": seen})
    options = ("--config", "m1v2b2", "--calibration", folder / "inputs.safetensors", "--rotate")
    done = run("quantize", folder / "in.safetensors", folder / "out.safetensors", *options)
    assert done.returncode == 0, done.stderr
    assert "b.weight: [32, 30] at" in done.stdout.replace(str(tensors["b.weight"].shape[0]), "32")
    assert "bits/weight, without calibration: the file has none for it" in done.stdout
    found = codegemm.load_all(folder / "out.safetensors")["a"]
    assert found == codegemm.quantize(tensors["a.weight"], "m1v2b2", calibration=seen, rotate=True)
    calibration.save(folder / "inputs.safetensors", {"c": seen})
    done = run("quantize", folder / "in.safetensors", folder / "no.safetensors", *options)
    assert done.returncode != 0
    assert "c is none of the matrices to quantise" in done.stderr
    assert not (folder / "no.safetensors").exists()


def test_include_chooses(model):
    folder, _ = model
    done = run(
        "quantize", folder / "in.safetensors", folder / "out.safetensors", "--config", "m1v2b2", "--include", "b.*"
    )
    assert done.returncode == 0, done.stderr
    assert list(codegemm.load_all(folder / "out.safetensors")) == ["b"]


def test_names_that_would_collide_are_refused_first(tmp_path):
    matrix = np.ones((4, 8), np.float32)
    for tensors, message in (
        ({"a": matrix, "a.weight": matrix}, "both a and a.weight match --include"),
        ({"format.weight": matrix}, "name 'format': can't be that of a weight"),
        ({"a.weight": matrix, "a.codes": np.ones(3)}, "tensor 'a.codes': is part of a weight"),
    ):
        save_file(tensors, tmp_path / "in.safetensors")
        arguments = ("--config", "m1v4b2", "--include", r"a|.*\.weight")
        done = run("quantize", tmp_path / "in.safetensors", tmp_path / "out.safetensors", *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stdout == ""


def test_info_prints_names_as_they_are(tmp_path, make_weight):
    make_weight(16, 64, "m1v4").save(tmp_path / "w.safetensors", "x[/b][red]y")
    assert "x[/b][red]y" in run("info", tmp_path / "w.safetensors").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "m1v4", "--include", "nothing"], "no matrix matches --include 'nothing'"),
        (["--config", "m1v4", "--include", "("], "--include '('"),
        (["--config", "x"], "configuration 'x': expected"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(arguments, message, model):
    folder, _ = model
    done = run("quantize", folder / "in.safetensors", folder / "out.safetensors", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "out.safetensors").exists()


def test_files_that_are_not_there(tmp_path):
    done = run("info", tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr == f"codegemm: {tmp_path / 'nowhere'}: no such file\n"
    done = run("quantize", tmp_path / "in", tmp_path / "no folder" / "out", "--config", "m1v4")
    assert "there is no folder" in done.stderr


def test_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path / "cache"))
    assert run("cache", "path").stdout.strip() == str(tmp_path / "cache")
    assert run("cache", "clear").stdout == "removed 0 files, 0.0 MB\n"


def test_doctor_says_what_there_is_and_what_is_missing():
    done = run("doctor", env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    for text in ("codegemm", "C++ compiler", "psumbook", "cache", "CuPy", "NVRTC", "CUDA driver", "GPU"):
        assert text in done.stdout


def test_doctor_never_fails(monkeypatch, tmp_path, fresh_engine):
    def broken(*arguments):
        raise OSError("out of order")

    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: broken())
    monkeypatch.setattr("codegemm.devices.unavailable", lambda: "CuPy finds no usable GPU: the driver is too old")
    findings = {finding.what: finding for finding in doctor.examine()}
    assert findings["C++ compiler"].found is None
    assert "apt install g++" in findings["C++ compiler"].mend
    assert findings["GPU"].mend == "CuPy finds no usable GPU: the driver is too old"
    assert findings["codegemm"].mend == "out of order"
    assert findings["cache"].found == f"{tmp_path}: 0 files, 0.0 MB"


def test_doctor_names_the_command_that_installs(monkeypatch):
    def missing(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    findings = {finding.what: finding for finding in doctor.examine()}
    assert findings["torch (the bfloat16 baseline)"].mend == "pip install 'codegemm[torch]'"
    assert findings["CuPy"].mend == "pip install 'codegemm[cuda12]' (or cuda13)"


def test_help_and_version():
    assert "compare" in run("--help").stdout
    assert run("--version").stdout.strip() == f"codegemm, version {codegemm.__version__}"
    assert run("compare", "--nonsense").returncode == 2
