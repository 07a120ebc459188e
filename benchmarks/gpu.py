"""`make gpu`: what a machine with a GPU can tell, in parts that run alone and leave a file each.

python -m benchmarks.gpu [PART ...], from the repository's root, the cheapest part first:

tests      products, graphs, streams, host time
counters   shared-memory wavefronts and bytes of memory by ncu beside the emulator's counts
sanitize   compute-sanitizer over small products
bench-8b, bench-70b, bench-405b    every kernel on the linear layers of Llama-3

Files go to $OUT/<gpu>/, else to benchmarks/results/<gpu>/. It needs CuPy, NumPy and pytest, and no network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import counters, layers
from codegemm.comparison.sources import LLAMA_3
from codegemm.engines import cuda

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main(arguments: list[str] | None = None) -> int:
    """0 unless a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--seconds", type=float, default=330, help="of a part, after which it begins nothing more")
    chosen = parser.parse_args(arguments)
    unknown = [part for part in chosen.parts if part not in PARTS]
    if unknown:
        parser.error(f"part {unknown[0]!r}: must be one of {', '.join(PARTS)}")
    reason = cuda.unavailable()
    if reason:
        parser.exit(1, f"{reason}\n")
    folder = results_folder(cuda.name())
    failed = [part for part in chosen.parts or PARTS if not PARTS[part](folder / part, chosen.seconds)]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


def results_folder(gpu: str) -> Path:
    """Where a GPU's files go; made if need be."""
    folder = Path(os.environ.get("OUT") or RESULTS) / re.sub(r"\W+", "-", gpu.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(command: list[str], file: Path, seconds: float) -> bool:
    """Run one of the project's own commands, its output in `<part>.txt`; whether it succeeded in time."""
    name = file.with_suffix(".txt")
    with name.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
            process.wait()
    print(name.read_text(), end="", flush=True)
    if process.returncode == -signal.SIGKILL:
        print(f"stopped after {seconds:.0f} s")
    return process.returncode == 0


def _bench(model: str, file: Path, seconds: float) -> bool:
    def save(report: layers.Report) -> None:
        file.with_suffix(".json").write_text(json.dumps(report.as_json(), indent=1) + "\n")

    report = layers.run(LLAMA_3[model], seconds, save)
    for outcome in report.outcomes():
        print(f"{outcome.found:8.2f}  {'met' if outcome.is_met else 'missed'}  {outcome.statement}")
    for text in report.left_out:
        print(f"left out: {text}")
    for row in report.wrong:
        print(f"wrong: {layers.line(row)}")
    return not report.wrong


def _counters(file: Path, seconds: float) -> bool:
    found = counters.run(seconds)
    if found:
        file.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    return True


PARTS: dict[str, Callable[[Path, float], bool]] = {
    "tests": partial(_run, ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-q", "tests/test_gpu.py"]),
    "counters": _counters,
    "sanitize": partial(_run, ["tests/sanitize.py"]),
    **{f"bench-{model}": partial(_bench, model) for model in LLAMA_3},
}

if __name__ == "__main__":
    sys.exit(main())
