"""python -m benchmarks.pytorch [--json FILE] [--quick], from the repository's root.

What calls cost, in microseconds beside those of a plan, and how many times as fast as torch's own layers a Llama's
decode. Times are medians of interleaved rounds, with quartiles.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table

from benchmarks.arguments import parse
from benchmarks.pytorch import calls, decode
from benchmarks.pytorch.rounds import Seconds, quartiles
from benchmarks.targets import Outcome
from codegemm.engines.cpu import isa
from codegemm.measuring import conditions
from codegemm.measuring.machine import Machine
from codegemm.reporting import new_table, open_console, write_json

OVER_PLAN, TIMES_TORCH = 25e-6, 2.0  # at most; at least


@dataclass(frozen=True)
class Measured:
    """Seconds of every round. path: the instruction set of the kernels."""

    machine: Machine
    path: str
    calls: dict[str, Seconds]
    layers: Seconds
    models: Seconds

    def as_json(self) -> dict[str, Any]:
        """Everything, unrounded: medians in microseconds and milliseconds, and the targets."""
        told = {name: value for name, value in vars(self).items() if name != "machine"}
        targets = [asdict(outcome) | {"is_met": outcome.is_met} for outcome in self.outcomes()]
        medians = {"us_beside_the_plan": self.beside_the_plan(), "tokens": self.tokens()}
        return {"machine": self.machine.as_json(), "torch": torch.__version__, **told, **medians, "targets": targets}

    def beside_the_plan(self) -> dict[str, dict[str, float]]:
        """Microseconds by mode and call."""
        return {
            mode: {name: 1e6 * statistics.median(self.over_plan(mode, name)) for name in seconds}
            for mode, seconds in self.calls.items()
        }

    def tokens(self) -> dict[str, dict[str, float]]:
        """By what multiplies: milliseconds of a token's linear layers, and of all but its head, and how many times as
        fast as the faster of torch's."""
        found: dict[str, dict[str, float]] = {}
        for part, seconds in (("layers", self.layers), ("model", self.models)):
            for name, times in times_torch(seconds).items():
                found.setdefault(name, {}).update({
                    f"{part}_ms": 1e3 * statistics.median(seconds[name]), f"{part}_times": statistics.median(times),
                })  # fmt: skip
        return found

    def over_plan(self, mode: str, name: str) -> list[float]:
        """Seconds more than the plan's in each round."""
        seconds = self.calls[mode]
        return [each - plan for each, plan in zip(seconds[name], seconds[calls.PLAN])]

    def outcomes(self) -> list[Outcome]:
        """Of all targets."""
        slowest = max(statistics.median(self.over_plan(mode, calls.LAYER)) for mode in self.calls)
        most = f"a layer's call: {OVER_PLAN * 1e6:.0f} us beside the plan's hold it so many times"
        found = [Outcome(most, OVER_PLAN / slowest, 1.0)]
        for name, times in times_torch(self.layers).items():
            if name in decode.CONFIGS:
                statement = f"linear layers of a token, {name}: times the faster of torch's"
                found.append(Outcome(statement, statistics.median(times), TIMES_TORCH))
        return found


def times_torch(seconds: Seconds) -> dict[str, list[float]]:
    """How many times as fast as the faster of torch's two each is, in every round."""
    dense = [statistics.median(seconds[name]) for name in (decode.FLOAT32, decode.BFLOAT16)]
    faster = (decode.FLOAT32, decode.BFLOAT16)[dense[0] > dense[1]]
    return {name: [a / b for a, b in zip(seconds[faster], its)] for name, its in seconds.items()}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    chosen = parse("benchmarks.pytorch", __doc__, "a small model", arguments, "torch")
    with conditions.threads(None):
        machine = Machine.here("cpu")
        print("calls ...", file=sys.stderr, flush=True)
        called = calls.measure(*((3, 20) if chosen.quick else (201, 100)))
        print("a model ...", file=sys.stderr, flush=True)
        decoded = decode.measure(*((decode.QUICK, 3) if chosen.quick else (decode.FULL_SIZE, 15)))
        measured = Measured(machine.again(), isa.chosen().name, called, decoded.layers, decoded.models)
    print_tables(measured)
    if chosen.json is not None:
        write_json(measured.as_json(), chosen.json)
    return 0


def print_tables(measured: Measured) -> None:
    """Targets, calls, tokens."""
    console = open_console()
    machine = measured.machine
    console.print(f"{machine.processor}, path {measured.path}, {machine.threads} threads, torch {torch.__version__}")
    for line in machine.disturbances():
        console.print(line)
    for outcome in measured.outcomes():
        console.print(outcome.line())
    console.print(calls_table(measured))
    console.print(decode_table("linear layers of a token", measured.layers))
    console.print(decode_table("a token, all but the head", measured.models))


def calls_table(measured: Measured) -> Table:
    """Of one row times a weight of hardly any work."""
    table = new_table("calls", "of one row", "", ">us", ">beside the plan", ">quartiles")
    for mode, seconds in measured.calls.items():
        for name, its in seconds.items():
            lower, median, upper = (1e6 * each for each in quartiles(measured.over_plan(mode, name)))
            table.add_row(
                name, mode, f"{1e6 * statistics.median(its):.1f}", f"{median:.1f}", f"{lower:.1f} {upper:.1f}"
            )
    return table


def decode_table(title: str, seconds: Seconds) -> Table:
    """In milliseconds, and as multiples of torch's faster."""
    table = new_table(title, "", ">ms", ">quartiles", ">times torch")
    for name, times in times_torch(seconds).items():
        lower, median, upper = (1e3 * each for each in quartiles(seconds[name]))
        table.add_row(name, f"{median:.2f}", f"{lower:.2f} {upper:.2f}", f"{statistics.median(times):.2f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
