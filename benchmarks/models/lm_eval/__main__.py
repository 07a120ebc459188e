"""python -m benchmarks.models.lm_eval FOLDER... [--json FILE] [--limit N], from the repository's root.

How often models choose the sentence that comes next, by lm-eval's task of this folder (pydoc_next.yaml), one model
after the other. The same by lm-eval's own command:

    python -m codegemm.hf.lm_eval run --model hf --model_args pretrained=FOLDER,dtype=float32 \\
        --include_path benchmarks/models/lm_eval --tasks pydoc_next
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from codegemm.reporting import new_table, open_console, write_json
from codegemm.version import __version__

TASK = "pydoc_next"
_TOLD = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")


def main(arguments: list[str] | None = None) -> int:
    """Ask, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.lm_eval", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a model, quantised or dense")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--limit", type=int, metavar="N", help="ask the first N questions only")
    parser.add_argument("--device", default="cpu", help="as torch names it; cpu by default")
    chosen = parser.parse_args(arguments)
    for folder in chosen.folders:
        if not (folder / "config.json").is_file():
            parser.error(f"{folder}: has no config.json: must be a model's folder")
    if chosen.json is not None and not chosen.json.parent.is_dir():
        parser.error(f"--json {chosen.json}: there is no folder {chosen.json.parent}")
    if chosen.limit is not None and chosen.limit < 1:
        parser.error(f"--limit {chosen.limit}: must be at least 1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything of it is imported
    rows = [ask(folder, chosen.limit, chosen.device) for folder in chosen.folders]
    table = new_table(f"{TASK}: {rows[0]['questions']} questions", "model", ">right", ">+-", ">by length", ">+-")
    for row in rows:
        table.add_row(row["model"], *(f"{100 * row[name]:.1f} %" for name in _TOLD))
    open_console().print(table)
    if chosen.json is not None:
        write_json({
            "task": TASK, "limit": chosen.limit, "device": chosen.device, "codegemm": __version__,
            "python": sys.version.split()[0],
            **{name: version(name) for name in ("lm_eval", "torch", "transformers")}, "models": rows,
        }, chosen.json)  # fmt: skip
    return 0


def ask(folder: Path, limit: int | None, device: str) -> dict[str, Any]:
    """The shares of right choices of a model, by likelihood and by that for each character, with standard errors."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import codegemm.hf  # noqa: F401  # transformers then knows quantised layers

    tasks = TaskManager(include_path=str(Path(__file__).parent), include_defaults=False)
    found = simple_evaluate(
        "hf", {"pretrained": str(folder), "dtype": "float32"}, [TASK], task_manager=tasks, limit=limit, device=device,
        log_samples=False,
    )  # fmt: skip
    results = found["results"][TASK]
    shares = {name: results[f"{name},none"] for name in _TOLD}
    return {"model": str(folder), "questions": found["n-samples"][TASK]["effective"], **shares}


if __name__ == "__main__":
    sys.exit(main())
