"""A comparison's result as tables, and what is wrong with it as sentences."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from codegemm.comparison.result import Result, Row
from codegemm.measuring.stopwatch import NOISY
from codegemm.reporting import counted, decimals, format_time, open_console, print_table

_NUMBERS = (">bits/weight", ">batch", ">time", "quartiles", ">GB/s", ">% of bound", ">x dense", ">error")
# What a narrow terminal does without, the first of them first.
_OPTIONAL = (">bits/weight", ">GB/s", ">% of bound", ">error to original", ">shapes", None, "quartiles")


def print_tables(result: Result) -> None:
    """One table per case, its products from the fastest to the slowest; the geometric mean over cases; what was left
    out."""
    console = open_console()
    machine, cases = result.machine, result.by_case()
    path = f" ({', '.join(result.paths)})" if result.paths else ""
    read = "read" if machine.engine == "cpu" else "copy"
    console.print(
        f"{machine.device}, {machine.engine} engine{path}, {counted(machine.threads, 'thread')}; "
        f"memory bandwidth ({read}) {machine.bandwidth / 1e9:.1f} GB/s"
    )
    for line in busy(result):
        console.print(line, style="bold")
    for title, rows in cases.items():
        with_original = any(row.error_to_original is not None for row in rows)
        headings = [*_names(result), *_NUMBERS, *[">error to original"] * with_original]
        print_table(console, title, headings, list(_lines(result, rows, with_original)), _OPTIONAL)
    for text in legend(result):
        console.print(text)
    if len(cases) > 1:
        title = "Geometric mean of x dense over the shapes"
        batches = sorted({row.batch for row in result.rows if row.times_dense is not None})
        headings = [*_names(result), *(f">batch {batch}" for batch in batches), ">shapes"]
        print_table(console, title, headings, _means(result, batches), _OPTIONAL)
    for name, reason in result.left_out.items():
        console.print(f"left out: {name}: {reason}")
    for title, reasons in result.skipped.items():
        for config, reason in reasons.items():
            console.print(f"left out: {title}: {config}: {reason}")


def legend(result: Result) -> list[str]:
    """What the marks in the tables mean, as far as there are any."""
    marks = {
        '*  what kernel="auto" takes': any(row.chosen for row in result.rows),
        f"!  the quartiles are more than {NOISY:.0%} of the median apart: the time says little": bool(result.noisy),
        "c  timed call by call: no CUDA graph holds it": any(_by_calls(result, row) for row in result.rows),
        "wrong  the error is more than the kernel promises: no part of the ranking": bool(result.wrong),
    }
    return [text for text, is_there in marks.items() if is_there]


def complaints(result: Result) -> list[str]:
    """What makes the result one that can't be trusted, each a line; nothing where all is well."""
    found = [
        f"wrong: {name}, {row.case}, batch {row.batch}: error {row.error:.1e}, it promises {row.tolerance:.0e}"
        for row in result.wrong
        for name in [" ".join(filter(None, result.label(row)))]
    ]
    found += [
        f"failed: {' '.join(filter(None, (each.kernel, each.path, each.config)))}, {each.case}"
        f"{'' if each.batch is None else f', batch {each.batch}'}: {each.error}"
        for each in result.failed
    ]
    if result.noisy:
        vary = "varies" if len(result.noisy) == 1 else "vary"
        found.append(
            f"{len(result.noisy)} of {counted(len(result.rows), 'row')} {vary} by more than {NOISY:.0%} (marked !): "
            "take more --seconds, on an idle machine"
        )
    return found + busy(result)


def busy(result: Result) -> list[str]:
    """A line where others were at work."""
    signs = result.machine.disturbances()
    return [f"the machine was busy, so times say little: {'; '.join(signs)}"] if signs else []


def ranked(rows: Sequence[Row]) -> list[Row]:
    """From the fastest to the slowest; wrong ones behind all others."""
    return sorted(rows, key=lambda row: (row.wrong, row.seconds))


def _lines(result: Result, rows: Sequence[Row], with_original: bool) -> Iterator[list[str] | None]:
    """Of the table, a section for each batch."""
    noisy = any(row.noisy for row in rows)
    for batch in sorted({row.batch for row in rows}):
        for row in ranked([row for row in rows if row.batch == batch]):
            kernel, *rest = result.label(row)
            marks = ["!" if row.noisy else " "] * noisy + ["c"] * _by_calls(result, row)
            yield [
                f"{kernel} *" if row.chosen else kernel,
                *rest,
                f"{row.bits_per_weight:.3f}".rstrip("0").rstrip("."),
                str(batch),
                " ".join([format_time(row.seconds), *marks]),
                _quartiles(row),
                f"{row.bytes_read / row.seconds / 1e9:.1f}",
                _bound(row),
                "" if row.wrong else decimals(row.times_dense),
                f"{row.error:.1e}{' wrong' if row.wrong else ''}",
                *([f"{row.error_to_original:.3f}"] if with_original else []),
            ]
        yield None


def _bound(row: Row) -> str:
    """The share that is reached of what binds the product, in percent, and what that is."""
    return f"{100 * row.bound_seconds / row.seconds:.0f} {row.bound}"


def _quartiles(row: Row) -> str:
    """In the unit of the median."""
    numbers = (float(format_time(each, like=row.seconds).split()[0]) for each in row.quartiles)
    return "-".join(f"{number:.0f}" if number >= 100 else f"{number:.4g}" for number in numbers)


def _by_calls(result: Result, row: Row) -> bool:
    return result.machine.engine == "cuda" and row.timed == "calls"


def _means(result: Result, batches: Sequence[int]) -> list[list[str]]:
    """Kernels that are right everywhere, those that are the fastest for the smallest batch first."""
    wrong = {result.label(row) for row in result.wrong}
    ratios: dict[tuple[str, ...], dict[int, list[float]]] = {}
    for row in result.rows:
        if row.times_dense is not None and result.label(row) not in wrong:
            ratios.setdefault(result.label(row), {}).setdefault(row.batch, []).append(row.times_dense)
    means = {
        label: [statistics.geometric_mean(found[batch]) if batch in found else None for batch in batches]
        for label, found in ratios.items()
    }
    ordered = sorted(means, key=lambda label: [-(mean or 0) for mean in means[label]])
    return [[*label, *map(decimals, means[label]), str(max(map(len, ratios[label].values())))] for label in ordered]


def _names(result: Result) -> list[str]:
    """Headings of what `Result.label` tells."""
    return ["kernel", *["path"] * (len(result.paths) > 1), "weights"]
