"""The products that tables are made of, and what each takes: measured here, or predicted for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from codegemm.choice import select
from codegemm.comparison import runner
from codegemm.comparison.result import Result, Row
from codegemm.comparison.selection import Entry, entry
from codegemm.engines.cuda.gpu import Gpu
from codegemm.errors import KernelError
from codegemm.formats.format import parse, spec_of
from codegemm.kernel import Kernel, Product
from codegemm.measuring import conditions, sources
from codegemm.measuring.sources import Case
from codegemm.prediction import Prediction, predict, refusals
from codegemm.quantize.progress import Progress
from codegemm.registry import kernel_for, refusal, registered
from codegemm.reporting import by
from codegemm.reproduction.methods import Method, method

Shape = tuple[int, int]
ANY = "m1v4g128"  # a weight that gives a dense product its shape

# The linear layers of a decoder block, and how many there are of each: gate and up, down, query and output, key and
# value.
BLOCKS = {f"Llama-3 {size.upper()}": dict(zip(sources.LLAMA_3[size], (2, 1, 2, 2))) for size in ("8b", "70b")}


@dataclass(frozen=True)
class Cell:
    """A method's product: (out_features, in_features), the method's label, rows of x."""

    shape: Shape
    label: str
    batch: int = 1

    @property
    def method(self) -> Method:
        """What the label stands for."""
        return method(self.label)

    @property
    def config(self) -> str:
        """Of the weight, as it is spelt out; empty for a dense product."""
        return self.method.config and str(parse(self.method.config))


@dataclass
class Times:
    """What products take. missing: why others have no time."""

    rows: Mapping[Cell, Row | Prediction]
    missing: dict[str, str] = field(default_factory=dict)

    def is_noisy(self, cell: Cell) -> bool:
        """Whether the rounds of its time differ so much that it says little."""
        row = self.rows.get(cell)
        return isinstance(row, Row) and row.noisy

    def seconds(self, counts: Mapping[Cell, int]) -> float | None:
        """Of so many of each product; None where one has no time."""
        if any(cell not in self.rows for cell in counts):
            return None
        return sum(count * self.rows[cell].seconds for cell, count in counts.items())


def shape_of(text: str) -> Shape:
    """(out_features, in_features) of a label like `4096 x 1024`."""
    rows, columns = text.split(" x ")
    return int(rows), int(columns)


def of_block(name: str, label: str, batch: int = 1) -> dict[Cell, int]:
    """A block's products by one method, and how many there are of each."""
    return {Cell(shape, label, batch): count for shape, count in BLOCKS[name].items()}


def measured(cells: Sequence[Cell], settings: runner.Settings, progress: Progress) -> tuple[Result, Times]:
    """Everything that was found, and what of it are the times of cells, each of which is there once.

    settings: of which path and engine, seconds and rounds count.
    """
    missing = dict[str, str]()
    planned = [(case, list(_entries(case, its, settings, missing))) for case, its in _cases(cells)]
    result = runner.measure(planned, settings, progress)
    missing |= {each.kernel: each.error for each in result.failed} | {row.kernel: "is wrong" for row in result.wrong}
    rows = [row for row in result.rows if not row.wrong]
    return result, Times(_found(cells, rows), missing)


def builds(cells: Iterable[Cell], settings: runner.Settings) -> Iterator[Callable[[], object]]:
    """What measuring them compiles."""
    for case, its in _cases(cells):
        for each in _entries(case, its, settings, {}):
            for product in each.products:
                yield from each.kernel.builds(product, settings.device)


def predicted(cells: Sequence[Cell], gpu: Gpu) -> Times:
    """By the cost model."""
    rows: list[Row | Prediction] = []
    for case, its in _cases(cells):
        rows += predict(gpu, [case.shape], case.configs, sorted({cell.batch for cell in its}))
    found = _found(cells, rows)
    missing = {_name(cell): _unpredicted(cell, gpu) for cell in cells if cell not in found}
    return Times(found, missing)


def _name(cell: Cell) -> str:
    """Of products that have no time for one reason, whatever their shape."""
    return f"{cell.label}, batch {cell.batch}"


def _unpredicted(cell: Cell, gpu: Gpu) -> str:
    reasons = refusals(gpu, cell.shape, cell.config or ANY, cell.batch)
    if cell.method.ours:
        return "; ".join(dict.fromkeys(reasons.values()))
    return reasons.get(cell.method.kernel) or f"the engine cuda has no kernel {cell.method.kernel}"


def _found(cells: Iterable[Cell], rows: Iterable[Row | Prediction]) -> dict[Cell, Row | Prediction]:
    by_product: dict[tuple[Shape, int, str], list[Row | Prediction]] = {}
    for row in rows:
        by_product.setdefault((row.shape, row.batch, row.config), []).append(row)
    found = {}
    for cell in cells:
        for row in by_product.get((cell.shape, cell.batch, cell.config), []):
            if row.chosen if cell.method.ours else row.kernel == cell.method.kernel:
                found[cell] = row
    return found


def _cases(cells: Iterable[Cell]) -> Iterator[tuple[Case, list[Cell]]]:
    """By shape."""
    shapes: dict[Shape, list[Cell]] = {}
    for cell in cells:
        shapes.setdefault(cell.shape, []).append(cell)
    for shape, its in shapes.items():
        configs = dict.fromkeys(cell.config or ANY for cell in its)
        yield Case(by(shape), shape, tuple(map(str, map(parse, configs)))), its


def _entries(case: Case, cells: list[Cell], settings: runner.Settings, missing: dict[str, str]) -> Iterator[Entry]:
    """What can be measured, a kernel and a configuration at a time."""
    [path] = settings.paths
    batches: dict[tuple[Kernel, str], list[int]] = {}
    with conditions.path(path):
        for cell in cells:
            config = cell.config or str(parse(ANY))
            product = Product.of(spec_of(case.shape, config), cell.batch, settings.dtype)
            try:
                kernel = _kernel(cell.method, product, settings)
            except (KernelError, ValueError) as error:
                missing[_name(cell)] = str(error)
                continue
            batches.setdefault((kernel, config), []).append(cell.batch)
        for (kernel, config), its in batches.items():
            found = entry(case, config, kernel, its, settings.dtype, settings.device, path)
            if found:
                yield found


def _kernel(its: Method, product: Product, settings: runner.Settings) -> Kernel:
    """What a method multiplies by; ValueError or KernelError where there is none."""
    if its.ours:
        return select(product, settings.device)
    named = next((k for k in registered(settings.engine) if k.name == its.kernel), None)
    if named is None:
        raise ValueError(f"the engine {settings.engine} has no kernel {its.kernel}")
    reason = refusal(kernel_for(named, product.spec), product, settings.device)
    if reason:
        raise ValueError(f"{its.kernel}: {reason}")
    return named
