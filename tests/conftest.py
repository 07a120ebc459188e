"""Random weights and golden arrays for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import codegemm
from codegemm import cache as store
from codegemm import choice, tables
from codegemm.engines.cpu import compiler, library
from codegemm.testing.problems import Problem

pytest_plugins = ["emulator.gpu"]

TUNED = tables.tuned  # before `untuned` takes it away
DATA = Path(__file__).parent / "data"


def pytest_configure(config: pytest.Config) -> None:
    # Options from outside are for this run: others that tests start would write over its reports.
    os.environ.pop("PYTEST_ADDOPTS", None)
    if config.pluginmanager.hasplugin("hypothesispytest"):  # which tests on a GPU do without
        from hypothesis import settings

        settings.register_profile("no deadline", deadline=None)  # whatever else a machine is doing
        settings.load_profile("no deadline")


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector needs not look at all of it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` as on a machine where nothing was tuned."""
    monkeypatch.setattr(tables, "tuned", lambda device: ())


@pytest.fixture
def psumbook_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`auto` takes psumbook where it can be had, however small a matrix is: what processors are best at differs."""
    decide = choice.decide

    def decided(product: choice.Lookup, estimates: Mapping[str, float], *recorded: Any) -> choice.Decision:
        if "psumbook" in estimates:
            return choice.Decision("psumbook", "asked for")
        return decide(product, estimates, *recorded)

    monkeypatch.setattr(choice, "decide", decided)
    choice.choose_anew()
    yield
    monkeypatch.undo()
    choice.choose_anew()


@pytest.fixture
def emptied_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache that has nothing but the user's own compiled kernels: to compile them anew would take long."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for kind in ("cpu", "cuda"):
        (cache / kind).symlink_to(store.folder(kind))
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(cache))
    return cache


@pytest.fixture
def tuned_cache(monkeypatch: pytest.MonkeyPatch, emptied_cache: Path) -> Iterator[Path]:
    """Where choices are stored: in a cache that has none, and is gone afterwards."""
    monkeypatch.setattr(tables, "tuned", TUNED)
    choice.choose_anew()
    yield emptied_cache / "tuned"
    monkeypatch.undo()
    choice.choose_anew()


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh numbers in every run; a failure names them through the test's own output."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture
def make_weight(rng: np.random.Generator) -> Callable[..., codegemm.Weight]:
    """A random weight of a shape and configuration; parts > 1: concatenated."""

    def make(rows: int, columns: int, config: str, parts: int = 1) -> codegemm.Weight:
        return Problem(rows, columns, config, parts).weight(int(rng.integers(1 << 31)))

    return make


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """The arrays of one file of tests/data."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)

    return read


@pytest.fixture
def fresh_engine() -> Iterator[None]:
    """The CPU engine as in a new process, before and after: nothing loaded, nothing remembered."""

    def forget() -> None:
        library.forget()
        compiler.find_compiler.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def own_cache(fresh_engine: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where compiled kernels are kept: in a cache that is not there yet."""
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_compiler(fresh_engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a C++ compiler."""
    monkeypatch.setenv("CXX", "no-such-compiler")
