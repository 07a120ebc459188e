"""python -m benchmarks.cpu [--json FILE] [--quick], from the repository's root.

Prints, in ratios, what the CPU engine reaches beside what it is to reach: speed in multiples of dense products and of
AQLM's numba kernel, the share of the read bandwidth, errors. CODEGEMM_CPU=avx2 measures another path than the
processor's best. Fails where a product errs by more than is promised.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from contextlib import suppress

from benchmarks.arguments import parse
from benchmarks.cpu import peers, report, rounds
from codegemm.engines.cpu import device, isa
from codegemm.version import __version__


def main(arguments: list[str] | None = None) -> int:
    """0 unless a product is wrong."""
    chosen = parse("benchmarks.cpu", __doc__, "small shapes", arguments)
    settings = rounds.QUICK if chosen.quick else rounds.FULL_SIZE
    with peers.registered():
        measured = rounds.run(settings, lambda text: print(f"{text} ...", file=sys.stderr, flush=True))
    machine = report.Machine(device.name(), isa.chosen().name, versions())
    report.print_tables(measured, machine)
    if chosen.json is not None:
        report.write_report(measured, machine, chosen.json)
    wrong = measured.wrong()
    for line in wrong:
        print(f"wrong: {line}")
    return int(bool(wrong))


def versions() -> dict[str, str]:
    """Of what was measured, as far as it is installed."""
    installed = {"codegemm": __version__, "python": platform.python_version()}
    for package in ("numpy", "torch", "numba", "aqlm"):
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed


if __name__ == "__main__":
    sys.exit(main())
