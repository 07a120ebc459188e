"""python -m benchmarks.cpu [--json PATH] [--quick] [--read FILE] [--compare FILE], from the repository's root.

Prints, in ratios, what the CPU engine reaches beside what it is to reach with the machine's instruction set: speed in
multiples of dense products and, where they are installed, beside AQLM's numba kernel and ggml's product; the share of
the read bandwidth; errors. CODEGEMM_CPU=avx2 measures another instruction set than the processor's best. Fails where a
product errs by more than is promised.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from contextlib import suppress

from benchmarks.arguments import parse
from benchmarks.cpu import compare, ggml, libggml, measured, peers, report, rounds
from benchmarks.cpu.measured import Machine, Measured
from codegemm.engines.cpu import device, isa
from codegemm.measuring import machine as conditions
from codegemm.version import __version__

_FILES = {
    "read": "show what an earlier run found, measure nothing",
    "compare": "show the speed in terms of an earlier run's, too",
}


def main(arguments: list[str] | None = None) -> int:
    """0 unless a product is wrong."""
    chosen = parse("benchmarks.cpu", __doc__, "small shapes", arguments, "cpu", _FILES)
    earlier = chosen.compare and measured.read(chosen.compare)  # a file that is none is told before minutes pass
    machine, found = measured.read(chosen.read) if chosen.read else measure(chosen.quick)
    if chosen.json is not None:
        report.write_report(found, machine, chosen.json)
    report.print_tables(found, machine)
    if earlier:
        compare.print_comparison((machine, found), earlier)
    wrong = found.wrong()
    for line in wrong:
        print(f"wrong: {line}")
    return int(bool(wrong))


def measure(quick: bool) -> tuple[Machine, Measured]:
    """This machine, and what it reaches."""
    began = conditions.Machine.here("cpu")
    with peers.registered():
        told = versions()
        settings = rounds.QUICK if quick else rounds.FULL_SIZE
        found = rounds.run(settings, lambda text: print(f"{text} ...", file=sys.stderr, flush=True))
    path, best = isa.chosen().name, isa.available()[0].name
    busy = tuple(began.again().disturbances())
    return Machine(device.name(), path, best, told, began.commit, began.date, busy), found


def versions() -> dict[str, str]:
    """Of what was measured, as far as it is installed."""
    installed = {"codegemm": __version__, "python": platform.python_version()}
    for package in ("numpy", "torch", "numba", "aqlm"):
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    if ggml.GGML.unavailable() is None:
        installed["ggml"] = libggml.version()
    return installed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(str(error))
