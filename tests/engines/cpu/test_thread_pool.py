"""The thread pool where threads lose their processor between any two steps."""

import subprocess
from pathlib import Path

from codegemm.engines.cpu import compiler

HERE = Path(__file__).with_name("threads")


def test_every_task_runs_once_whoever_is_late(tmp_path):
    """A worker that comes when a loop is over takes none of the next one's tasks for its own."""
    program = tmp_path / "loops"
    slow = ("-include", str(HERE / "slow_atomic.hpp"))
    sources = (str(compiler.SOURCES / "threads.cpp"), str(HERE / "loops.cpp"))
    subprocess.run(["g++", "-std=c++17", "-O1", "-pthread", *slow, *sources, "-o", str(program)], check=True)
    done = subprocess.run([str(program), "4"], capture_output=True, text=True, check=False, timeout=60)
    assert not done.returncode, done.stdout
