"""The processes that quantise a model together: on one machine, or those of `torchrun` on several.

All run the same program. What one of them has, the others get by `share`: the result is the same for any number.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SHARDS = 8  # of the text's rows, whoever computes with them: sums over rows are added up shard by shard
_PATIENCE = datetime.timedelta(days=7)  # for the others: a large matrix takes its time
_SECONDS = 5.0  # till a process whose connection is closed has ended


class Group(ABC):
    """rank: the number of this process, the first of which writes files. size: how many there are."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process reads and writes what is kept."""
        return self.rank == 0

    def owner(self, number: int) -> int:
        """Of the processes the one whose turn a shard or a matrix is."""
        return number % self.size

    @abstractmethod
    def share(self, value: Any, source: int) -> Any:
        """What process `source` has as `value`, in every process; it can be pickled."""


class Alone(Group):
    """One process."""

    rank, size = 0, 1

    def share(self, value: Any, source: int) -> Any:
        return value


class Disconnected(RuntimeError):
    """Another process has ended, so that nothing can be shared."""


class Several(Group):
    """Processes that torch.distributed connects, by gloo: what is shared lies in memory, not on GPUs."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, value: Any, source: int) -> Any:
        held = [value if self.rank == source else None]
        try:
            dist.broadcast_object_list(held, src=source, group=self._group)
        except RuntimeError as error:
            raise Disconnected(f"process {self.rank} of {self.size}: another has ended ({error})") from error
        return held[0]


@contextmanager
def joined() -> Iterator[Group]:
    """The group that `torchrun` started or that is initialised already; else this process alone."""
    if dist.is_available() and dist.is_initialized():
        yield Several()
    elif "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield Several()
        finally:
            dist.destroy_process_group()
    else:
        yield Alone()


@contextmanager
def started(workers: int, program: Callable[..., Any], arguments: Sequence[Any]) -> Iterator[Group]:
    """This process as the first of `workers` on this machine; program(*arguments) is what the others run.

    ChildProcessError, in place of what is raised in the body, where one of them has ended before its time. Of what all
    of them raise, a ValueError, and of what follows from it only this process tells.
    """
    with tempfile.TemporaryDirectory(prefix="codegemm-") as folder:
        place = Path(folder) / "store"
        spawn = torch.multiprocessing.get_context("spawn")
        ready = spawn.Semaphore(0)
        others: list[BaseProcess] = [
            spawn.Process(target=_run, args=(ready, place, rank, workers, program, arguments), daemon=True)
            for rank in range(1, workers)
        ]
        try:
            for other in others:
                other.start()
            _await(ready, others)
            _connect(place, 0, workers)
            try:
                yield Several()
            finally:
                dist.destroy_process_group()
        except Disconnected as error:
            wait([other.sentinel for other in others], _SECONDS)
            lost = _lost(others)
            if lost is None:
                raise
            raise lost from error
        finally:
            for other in others:
                other.join(0.1)
                if other.is_alive():
                    other.terminate()


def _await(ready: Any, others: Sequence[BaseProcess]) -> None:
    """Till all the others are about to connect, for who connects waits for all; ChildProcessError where one ends."""
    for _ in others:
        while not ready.acquire(timeout=0.1):
            lost = _lost(others)
            if lost is not None:
                raise ChildProcessError(
                    f"{lost} before it began; a script that starts workers must do so under "
                    "`if __name__ == '__main__':`, or have workers=1"
                )


def _lost(others: Sequence[BaseProcess]) -> ChildProcessError | None:
    """That one of the others has ended, if so."""
    for rank, other in enumerate(others, 1):
        if other.exitcode is not None:
            return ChildProcessError(f"worker {rank} of {len(others) + 1} ended (exit status {other.exitcode})")
    return None


def _run(ready: Any, place: Path, rank: int, size: int, program: Callable[..., Any], arguments: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is heard by the first process alone, which says so
    ready.release()
    _connect(place, rank, size)
    try:
        program(*arguments)
    except (ValueError, Disconnected):
        sys.exit(1)
    finally:
        dist.destroy_process_group()


def _connect(place: Path, rank: int, size: int) -> None:
    store = dist.FileStore(str(place), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
