"""Models decode in turns, in rounds: so a machine that slows down for a while slows all of them down."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from codegemm.engines.cpu.device import available_memory
from codegemm.hf.bench.candidates import Candidate
from codegemm.hf.decoding import Decoder
from codegemm.hf.sizes import sizes
from codegemm.measuring import conditions
from codegemm.measuring.stopwatch import Timing, varies

_SLACK = {"cpu": 1 << 28, "cuda": 1 << 30}  # bytes of a model beside its weights: activations, workspaces, graphs


@dataclass(frozen=True)
class Settings:
    """What is measured: `tokens` new ones of each text behind a prompt of so many positions, in so many rounds."""

    batches: Sequence[int]
    prompt_length: int
    tokens: int
    rounds: int

    @property
    def positions(self) -> int:
        """Of the cache: those that are timed, and one token before, after another model's turn."""
        return self.prompt_length + 1 + self.tokens


@dataclass(frozen=True)
class Row:
    """What a model took for a step of all texts side by side, in each round. graph: whether that was replayed."""

    name: str
    config: str
    kernel: str
    dense: bool
    batch: int
    seconds: tuple[float, ...]
    weight_bytes: int
    graph: bool

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one."""
        return Timing(self.seconds, "", len(self.seconds)).quartiles

    @property
    def noisy(self) -> bool:
        """Whether the median says little."""
        return varies(self.median, self.quartiles)

    @property
    def tokens_per_second(self) -> float:
        """Of all texts together."""
        return self.batch / self.median


@dataclass(frozen=True)
class Found:
    """The rows of all that could be measured, and of the others the reasons, by name: what is too large, and errors."""

    rows: list[Row]
    too_large: dict[str, str]
    failed: dict[str, str]


@dataclass
class _Turns:
    """A model that is there, its decoders by batch, and the seconds that they took."""

    candidate: Candidate
    decoders: dict[int, Decoder]
    seconds: dict[int, list[float]]
    weight_bytes: int


def groups(candidates: Sequence[Candidate], room: int, beside: int) -> tuple[list[list[Candidate]], dict[str, str]]:
    """Neighbours that fit into so many bytes together, and what doesn't fit by itself with the reason; beside: bytes
    that each takes more than its weights."""
    found: list[list[Candidate]] = []
    too_large, left = {}, 0
    for each in candidates:
        needed = each.needed + beside
        if needed > room:
            too_large[each.name] = f"needs {needed / 1e9:,.1f} GB, and {room / 1e9:,.1f} GB of memory are free"
            continue
        if not found or needed > left:
            found.append([])
            left = room
        found[-1].append(each)
        left -= needed
    return found, too_large


def run(
    candidates: Sequence[Candidate],
    settings: Settings,
    device: torch.device,
    caches: int,
    say: Callable[[str], None],
    keep: Callable[[Found], None] = lambda found: None,
) -> Found:
    """Let all that fit into memory together take turns.

    caches: bytes of those that each model has. say: told what is made. keep: told what was found so far whenever
    models make room for others.
    """
    _let_go(device)
    grouped, too_large = groups(candidates, free_bytes(device), caches + _SLACK[device.type])
    found = Found([], too_large, {})
    for group in grouped:
        found.rows.extend(_measure(group, settings, device, found.failed, say))
        _let_go(device)
        keep(found)
    return found


def _measure(
    group: Sequence[Candidate],
    settings: Settings,
    device: torch.device,
    failed: dict[str, str],
    say: Callable[[str], None],
) -> list[Row]:
    """The rows of models that are there together; one that fails, told to `failed`, must not take the others' times."""
    there: list[_Turns] = []
    for candidate in group:
        say(f"{candidate.name}: {candidate.needed / 1e9:.2f} GB of weights ...")
        try:
            there.append(_begun(candidate, settings))
        except Exception as error:
            failed[candidate.name] = _said(error)
        _let_go(device)
    for number in range(settings.rounds):
        for each in there[::-1] if number % 2 else list(there):
            try:
                _take_turn(each, settings)
            except Exception as error:
                there.remove(each)
                failed[each.candidate.name] = _said(error)
    return [row for each in there for row in _rows(each)]


def free_bytes(device: torch.device) -> int:
    """Of the device's memory."""
    return available_memory() if device.type == "cpu" else int(torch.cuda.mem_get_info()[0])


def _begun(candidate: Candidate, settings: Settings) -> _Turns:
    model = candidate.make()
    taken = sizes(model).held
    decoders = {batch: Decoder(model, settings.positions, batch) for batch in settings.batches}
    return _Turns(candidate, decoders, {batch: [] for batch in decoders}, taken)


def _take_turn(turns: _Turns, settings: Settings) -> None:
    conditions.settle()
    for batch, decoder in turns.decoders.items():
        turns.seconds[batch].append(step_seconds(decoder, settings.prompt_length, settings.tokens))


def step_seconds(decoder: Decoder, prompt_length: int, tokens: int) -> float:
    """Of each of so many steps, one after the other, behind one that is not timed."""
    decoder.begin(prompt_length)
    decoder.step().tolist()  # waits for a GPU
    begin = time.perf_counter()
    for _ in range(tokens):
        chosen = decoder.step()
    chosen.tolist()
    return (time.perf_counter() - begin) / tokens


def _rows(turns: _Turns) -> list[Row]:
    one = turns.candidate
    return [
        Row(one.name, one.config, one.kernel, one.dense, batch, tuple(seconds), turns.weight_bytes,
            turns.decoders[batch].reason is None)
        for batch, seconds in turns.seconds.items()
    ]  # fmt: skip


def _let_go(device: torch.device) -> None:
    """Of memory that nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        import cupy

        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {[*str(error).splitlines(), ''][0]}"


def times_dense(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times as fast as the faster of the dense models a row is; None without one."""
    dense = [each.median for each in rows if each.dense and each.batch == row.batch]
    return min(dense) / row.median if dense else None
