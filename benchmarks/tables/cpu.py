"""What processors measured."""

from __future__ import annotations

from typing import Any

from benchmarks.cpu.measured import (
    AQLM,
    AUTO,
    AUTO_THREADS,
    DENSE,
    FAST,
    GGML,
    PSUMBOOK,
    TORCH_BF16,
    TORCH_FP32,
    Machine,
    Measured,
)
from benchmarks.cpu.targets import TARGETS, NeverSlower, Target
from benchmarks.tables import files, markdown, speed
from benchmarks.tables.files import Row
from codegemm.measuring.stopwatch import NOISY
from codegemm.reporting import by, counted, decimals

_TOLD = (AUTO, FAST, GGML, AQLM, TORCH_BF16, TORCH_FP32)
SLOWEST = [target for target in TARGETS if isinstance(target, NeverSlower) and not target.small]


def summary() -> str:
    """README's: the first machine's means over the shapes of Llama-3-8B."""
    result = files.read(files.COMPARED[0])
    return f"\n{_where(result)}:\n\n{speed.means(speed.summed_up(files.of_llama(result['rows'])))}"


def means() -> str:
    """Those of every machine, and how far its times can be trusted."""
    return "\n".join(map(_machine, files.COMPARED))


def _machine(file: str) -> str:
    result = files.read(file)
    rows = files.of_llama(result["rows"])
    return f"{_where(result)}, {_timing(rows)} ([{file}](../benchmarks/results/{file})):\n\n{speed.means(rows)}"


def _where(result: dict[str, Any]) -> str:
    """The processor, the instruction set and the threads."""
    machine, paths = result["machine"], dict.fromkeys(row["path"] for row in result["rows"] if row["path"])
    return f"{machine['device']} ({', '.join(paths)}), {counted(machine['threads'], 'thread')}"


def _timing(rows: list[Row]) -> str:
    """What can be said of the times."""
    noisy = sum(row["noisy"] for row in rows)
    return (
        f"medians of {len(rows[0]['rounds'])} rounds, {100 * noisy / len(rows):.0f} % of the times varying by more "
        f"than {100 * NOISY:.0f} %"
    )


def ratios() -> str:
    """What `make cpu` measured, a line for each instruction set."""
    heads = ["", *(f"times {each.against}" for each in SLOWEST)]
    lines = [[*heads, "% of read", "% of read, fast"]]
    for file, (machine, measured) in files.ratios().items():
        found = [each.slowest(measured)[0] for each in SLOWEST]
        shares = [Target(kernel, AUTO_THREADS, 1, 0).outcome(measured).found for kernel in (AUTO, FAST)]
        cells = [*map(decimals, found), *("" if each is None else f"{100 * each:.0f}" for each in shares)]
        lines.append([f"{_place(machine)} ([{file}](../benchmarks/results/{file}))", *cells])
    return markdown.table(lines)


def by_batch() -> str:
    """What `auto` takes and what it is measured beside, in multiples of dense: a table for each instruction set."""
    tables = []
    for file, (machine, measured) in files.ratios().items():
        where = f"{_place(machine)} ([{file}](../benchmarks/results/{file}))"
        busy = "".join(f"; the machine was busy: {each}" for each in machine.disturbances)
        tables.append(f"{where}{busy}:\n\n{speed.means(rows(measured))}")
    return "\n".join(tables)


def rows(measured: Measured) -> list[Row]:
    """Of `make cpu` those with as many threads as `auto` is measured by, as tables of speed read them."""
    return [
        {"kernel": kernel, "config": row.config, "batch": row.batch, "times_dense": measured.times(row, DENSE)}
        for kernel in _TOLD
        for row in measured.rows
        if row.is_by(kernel) and row.threads == AUTO_THREADS
    ]


def _place(machine: Machine) -> str:
    return f"{machine.device} ({machine.path}), {counted(AUTO_THREADS, 'thread')}, {_version(machine)}"


def _version(machine: Machine) -> str:
    """Which the package was in."""
    return f"at {machine.commit}" if machine.commit else "by an earlier version"


def slower_than_psumbook() -> str:
    """The products of `make cpu` for which `auto` took a kernel that was slower than `psumbook`, a line for each."""
    lines = []
    for machine, measured in files.ratios().values():
        for row in measured.automatic():
            ratio = measured.times(row, PSUMBOOK)
            if ratio is not None and ratio < 1:
                product = f"{by(row.shape)}, {row.config}, {counted(row.batch, 'row')} of x"
                told = f"`{row.kernel}`, and `{PSUMBOOK}` is {1 / ratio:.1f} times as fast"
                lines.append(f"- {_place(machine)}: {product}: {told}\n")
    return "".join(lines) or "- none\n"
