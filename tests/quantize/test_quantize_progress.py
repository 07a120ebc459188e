"""Bars on a terminal while a matrix is quantised."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr

import numpy as np
import pytest
from safetensors.numpy import save_file

import codegemm
from codegemm.quantize import progress
from codegemm.quantize.progress import Progress
from codegemm.quantize.stored import quantized


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """For redirect_stderr in the test itself: pytest renews standard error behind fixtures."""
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


@pytest.mark.parametrize("config", ["m1v4b4", "e8p", "qtip"])
def test_a_progress_bar_goes_to_standard_error(config, gaussian, terminal, capsys):
    with redirect_stderr(terminal):
        codegemm.quantize(gaussian[:32, :64], config, progress=True)
    assert f"quantizing to {config}" in terminal.getvalue()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("patience", [0.0, 1000.0])
def test_a_bar_appears_where_it_takes_long(patience, gaussian, terminal, monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "PATIENCE", patience)
    save_file({"a.weight": gaussian[:16, :64]}, tmp_path / "in")
    with redirect_stderr(terminal):
        codegemm.quantize(gaussian[:16, :64], "m1v4b4", calibration=codegemm.Calibration.of(np.eye(64), 1))
        codegemm.quantize_file(tmp_path / "in", tmp_path / "out", "m1v4b4")
    for title in ("quantizing to m1v4b4", "calibrating", "1 of 1 matrices"):
        assert (title in terminal.getvalue()) == (patience == 0)


def test_no_bar_appears_unasked(gaussian, terminal, monkeypatch):
    """Where it is not wanted, where there is one already, and where nobody would see it."""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with redirect_stderr(terminal):
        codegemm.quantize(gaussian[:16, :64], "m1v4b4", progress=False)
        quantized(gaussian[:16, :64], "m1v4b4", time.time_ns())  # which is not in the cache
        monkeypatch.setattr(Terminal, "isatty", lambda self: False)
        codegemm.quantize(gaussian[:16, :64], "m1v4b4")
    assert terminal.getvalue() == ""
    with redirect_stderr(None):
        codegemm.quantize(gaussian[:16, :64], "m1v4b4")


def test_a_bar_that_comes_late_counts_from_the_start(terminal):
    """Whichever thread makes it, there is one; a bar beneath brings the one above it."""
    soon = time.monotonic() + 0.2
    with redirect_stderr(terminal), Progress("whole", True, due=soon) as whole, whole.beneath("part") as part:
        whole.total(100)
        part.total(40)
        part.advance(7)
        assert terminal.getvalue() == ""
        time.sleep(0.25)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(part.advance, [1] * 16))
        whole.advance(50)
        drawn = [(task.description, task.completed, task.total) for task in whole._bars.tasks]
        assert drawn == [("whole", 50, 100), ("part", 23, 40)]
