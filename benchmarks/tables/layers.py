"""What layers in torch cost."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import files, markdown
from codegemm.reporting import counted


def tables() -> str:
    """Of every machine."""
    return "".join(_machine(files.read(file)) for file in files.TORCH)


def _machine(result: dict[str, Any]) -> str:
    """A Llama's token, and a call."""
    machine = result["machine"]
    told = (
        f"{machine['processor']} ({result['path']}), {counted(machine['threads'], 'thread')}, torch {result['torch']}"
    )
    tokens = [["a token", "ms, linear layers", "times torch", "ms, all but the head", "times torch"]]
    for name, row in result["tokens"].items():
        cells = (row["layers_ms"], row["layers_times"], row["model_ms"], row["model_times"])
        tokens.append([name, *(f"{cell:.2f}" for cell in cells)])
    modes = result["us_beside_the_plan"]
    calls = [["us beside the plan's", *(f"`{mode}`" for mode in modes)]]
    names = list(next(iter(modes.values())))[1:]
    calls += [[name, *(f"{mode[name]:.0f}" for mode in modes.values())] for name in names]
    return f"\n{told}, in multiples of the faster of torch's:\n\n{markdown.table(tokens)}\n{markdown.table(calls)}"
