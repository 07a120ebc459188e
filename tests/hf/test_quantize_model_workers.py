"""`codegemm.quantize_model` by several processes: bit for bit the same, and a message where one is lost."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from emulator.cases import ALL
from support.models import tiny_llama
from support.processes import with_tests
from support.whole import BEGIN, CONFIG, contents, left_behind, rows, saved

import codegemm
from codegemm.hf.blockwise import checks, group, runner

ARGUMENTS = {"config": CONFIG, "time_limit": 0, "tune": 2}


@pytest.fixture
def dense(tmp_path):
    return saved(tiny_llama(1), tmp_path / "dense")


def by_one(dense, calibration):
    codegemm.quantize_model(dense, dense.parent / "by one", **ARGUMENTS, calibration=calibration, workers=1)
    return contents(dense.parent / "by one")


# Of a text that is one part the first of two processes has nothing.
@pytest.mark.parametrize(
    ("workers", "count", "length"), [(2, 16, 16)] + [(2, 512, 64), (4, 512, 64), (3, 13, 16)] * ALL
)
def test_the_same_for_any_number(workers, count, length, dense, tmp_path):
    text = rows(count, length)
    codegemm.quantize_model(dense, tmp_path / "out", **ARGUMENTS, calibration=text, workers=workers)
    assert contents(tmp_path / "out") == by_one(dense, text)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("wanted", "gpus", "count"), [(None, 3, 3), (2, 3, 2), (None, 1, 1)])
def test_one_for_each_gpu(wanted, gpus, count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert checks.workers_for(wanted, "cuda") == count


@pytest.mark.skipif(not ALL, reason="for make test-all")
def test_a_worker_that_is_killed(dense, tmp_path):
    """The same call goes on, with another number of them, too."""

    def kill(layer):
        multiprocessing.active_children()[0].kill()

    with pytest.raises(ChildProcessError, match=r"worker 1 of 2 ended \(exit status -9\)"):
        codegemm.quantize_model(
            dense, tmp_path / "out", **ARGUMENTS, calibration=rows(), workers=2, spill=True, on_layer=kill
        )
    assert not (tmp_path / "out").exists()
    assert not multiprocessing.active_children()
    done = codegemm.quantize_model(dense, tmp_path / "out", **ARGUMENTS, calibration=rows(), workers=1)
    assert done.resumed > 0
    assert left_behind(tmp_path / "out") == []
    assert contents(tmp_path / "out") == by_one(dense, rows())


def test_what_others_are_told_is_not_the_model(dense, tmp_path, monkeypatch):
    """They read its files themselves."""

    def told(workers, program, arguments):
        assert len(pickle.dumps(arguments)) < 10_000 < (dense / "model.safetensors").stat().st_size
        raise InterruptedError

    monkeypatch.setattr(runner, "started", told)
    with pytest.raises(InterruptedError):
        codegemm.quantize_model(dense, tmp_path / "out", **ARGUMENTS, calibration=rows(), workers=2)


class Lethal:
    """Ends the process that gets it."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.skipif(not ALL, reason="for make test-all")
def test_a_worker_that_does_not_begin():
    ended = pytest.raises(ChildProcessError, match=r"worker 1 of 2 ended \(exit status 3\) before it began")
    with ended, group.started(2, print, (Lethal(),)):
        raise AssertionError


@pytest.mark.skipif(not ALL, reason="starts another process")
def test_an_error_of_all_is_told_once(dense, tmp_path, capfd):
    """By the first process; the others say nothing."""

    def fail(layer):
        raise ValueError("of the first process")

    with pytest.raises(ValueError, match="of the first process"):
        codegemm.quantize_model(
            dense, tmp_path / "out", **ARGUMENTS, calibration=rows(), workers=2, on_layer=fail, progress=False
        )
    assert "Traceback" not in capfd.readouterr().err


UNDER_TORCHRUN = """
    if __name__ == "__main__":
        codegemm.quantize_model(sys.argv[1], sys.argv[2], CONFIG, calibration=rows(), time_limit=0, tune=2)
        assert os.path.exists(sys.argv[2] + "/config.json")
"""


@pytest.mark.skipif(not ALL, reason="starts four processes")
def test_under_torchrun(dense, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(BEGIN + textwrap.dedent(UNDER_TORCHRUN))
    run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d"]
    subprocess.run(
        [sys.executable, *run, "--rdzv-endpoint", "localhost:0", script, dense, tmp_path / "out"],
        check=True, timeout=120, capture_output=True, env=with_tests(),
    )  # fmt: skip
    assert left_behind(tmp_path / "out") == []
    assert contents(tmp_path / "out") == by_one(dense, rows())
