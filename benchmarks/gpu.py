"""`make gpu`: what a machine with a GPU can tell, in parts that run alone and leave a file each.

python -m benchmarks.gpu [PART ...], from the repository's root, the cheapest and most telling part first:

smoke      one product of every kernel
tests      products, graphs, streams, host time
bench-8b, bench-70b, bench-405b    every kernel on the linear layers of Llama-3
reproduce  the experiments of the CodeGEMM paper
bench-model    whole models of Llama-3.1 that decode, 8B and 70B
counters   shared-memory wavefronts and bytes of memory by ncu beside the emulator's counts
cuts       many ways of cutting products into thread blocks, and the weights of their estimates
sanitize   compute-sanitizer over small products

Files go to $OUT/<gpu>/, else to benchmarks/results/<gpu>/: what a part prints, and what it measured as JSON. It needs
CuPy, NumPy and pytest, and no network.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from benchmarks import counters, cuts, layers, smoke
from codegemm import devices
from codegemm.comparison import pairs
from codegemm.comparison.report import complaints
from codegemm.engines.cuda import compiler
from codegemm.measuring.sources import LLAMA_3
from codegemm.reporting import write_json
from codegemm.reproduction import ALL, report, runner
from codegemm.warmup import build_all

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_EACH, _ROUNDS = 0.05, 5  # seconds of a product of `reproduce`, and the rounds that it has in them


def main(arguments: list[str] | None = None) -> int:
    """0 unless a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--seconds", type=float, help="of each part, after which it begins nothing more")
    parser.add_argument("--cubins", type=Path, help="folder that `make cubins` filled")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar="FILE", help="two bench-*.json or cuts.json, product by product"
    )
    chosen = parser.parse_args(arguments)
    if chosen.compare:
        try:
            print(*layers.compared(*(pairs.read(path, "cuts") for path in chosen.compare)), sep="\n")
        except (OSError, ValueError) as error:
            parser.error(f"--compare: {error}")
        return 0
    unknown = [part for part in chosen.parts if part not in PARTS]
    if unknown:
        parser.error(f"part {unknown[0]!r}: must be one of {', '.join(PARTS)}")
    reason = devices.unavailable()
    if reason:
        parser.exit(1, f"{reason}\n")
    if chosen.cubins:
        print(f"{compiler.adopt(chosen.cubins)} cubins of {chosen.cubins}")
    folder = Path(os.environ.get("OUT") or RESULTS) / re.sub(r"\W+", "-", devices.name().lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: PARTS[name] for name in chosen.parts or PARTS}
    begin = time.monotonic()
    try:
        build_all(chain.from_iterable(part.builds() for part in parts.values()))
    except Exception as error:  # its kernel will say so itself
        print(f"warning: {error}")
    print(f"compiled what was missing in {time.monotonic() - begin:.0f} s", flush=True)
    failed = []
    for name, part in parts.items():
        with _kept((folder / name).with_suffix(".txt")):
            print(f"---- {name}", flush=True)
            begin = time.monotonic()
            if not part.run(folder / name, part.seconds if chosen.seconds is None else chosen.seconds):
                failed.append(name)
            print(f"---- {name}: {time.monotonic() - begin:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


class _Both(io.TextIOBase):
    """Writes to two files."""

    def __init__(self, *files: TextIO) -> None:
        self._files = files

    def write(self, text: str) -> int:
        for file in self._files:
            file.write(text)
            file.flush()
        return len(text)


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[None]:
    """What is printed, and what is warned of, goes into the file, too."""
    with (
        path.open("w") as file,
        contextlib.redirect_stdout(_Both(sys.stdout, file)),
        contextlib.redirect_stderr(_Both(sys.stderr, file)),
    ):
        yield


def _run(command: list[str], file: Path, seconds: float) -> bool:
    """Run one of the project's own commands, its output line by line as it comes; whether it succeeded in time."""
    process = subprocess.Popen(
        [sys.executable, "-u", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip

    timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))  # and what it started
    timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
    process.wait()
    timer.cancel()
    if process.returncode == -signal.SIGKILL:
        print(f"stopped after {seconds:.0f} s")
    return process.returncode == 0


def _bench(model: str, file: Path, seconds: float) -> bool:
    report = layers.run(LLAMA_3[model], seconds, lambda report: write_json(report.as_json(), file.with_suffix(".json")))
    for outcome in report.outcomes():
        print(outcome.line())
    for text in report.unmeasured:
        print(f"left out: {text}")
    for row in report.wrong:
        print(f"wrong: {layers.line(row)}")
    return not report.wrong


def _reproduce(file: Path, seconds: float) -> bool:
    """In half of that time products are measured; the rest goes to weights, what is right, and quantising."""
    each = min(_EACH, seconds / 2 / len(runner.products([ALL])))
    found = runner.run([ALL], "cuda", seconds=each, rounds=_ROUNDS)
    write_json(found.as_json(), file.with_suffix(".json"))
    report.print_tables(found)
    assert found.result is not None
    print(*complaints(found.result), sep="\n")
    return not found.broken


def _bench_models(file: Path, seconds: float) -> bool:
    """What is found in time is kept; nothing where the command line or models can't be."""
    missing = [name for name in ("torch", "transformers", "click", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"left out: {', '.join(missing)} not installed")
        return True
    begin, went_well = time.monotonic(), True
    for model in ("8b", "70b"):
        command = ["-c", "from codegemm.cli import main; main()", "bench-model", "--llama", model, "--random"]
        command += [
            "--engine",
            "cuda",
            "--batch",
            "1,4,8,16",
            "--json",
            str(file.with_name(f"model-{model}.json")),
        ]
        went_well &= _run(command, file, max(1.0, seconds - (time.monotonic() - begin)))
    return went_well


def _written(measured: Any, file: Path) -> bool:
    """What a part measured, if anything, as JSON; such a part never fails."""
    if measured:
        write_json(measured, file.with_suffix(".json"))
    return True


def _products_of_tests() -> Iterator[Callable[[], object]]:
    """What the tests compile."""
    sys.path.append(str(ROOT / "tests"))
    from support import gpu_products

    yield from gpu_products.builds()


@dataclass(frozen=True)
class Part:
    """run: measures into files of that name within so many seconds; whether all went well. builds: what it compiles."""

    run: Callable[[Path, float], bool]
    seconds: float
    builds: Callable[[], Iterable[Callable[[], object]]]


def _bench_part(model: str, seconds: float) -> Part:
    return Part(partial(_bench, model), seconds, lambda: layers.builds(LLAMA_3[model]))


_TESTS = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-q", "--durations=10"]
PARTS = {
    "smoke": Part(lambda file, seconds: smoke.run(seconds), 10, smoke.builds),
    "tests": Part(partial(_run, [*_TESTS, "tests/engines/cuda/test_gpu.py"]), 200, _products_of_tests),
    "bench-8b": _bench_part("8b", 90),
    "bench-70b": _bench_part("70b", 150),
    "reproduce": Part(_reproduce, 300, lambda: runner.builds("cuda")),
    "bench-model": Part(_bench_models, 560, lambda: ()),
    "counters": Part(lambda file, seconds: _written(counters.run(seconds), file), 120, counters.builds),
    "cuts": Part(lambda file, seconds: _written(cuts.run(seconds), file), 120, cuts.builds),
    "bench-405b": _bench_part("405b", 240),
    "sanitize": Part(partial(_run, ["tests/support/sanitize.py"]), 300, _products_of_tests),
}

if __name__ == "__main__":
    sys.exit(main())
