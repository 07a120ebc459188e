"""The report's tables, as text and as what they sort by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from codegemm.report.losing import Loss
from codegemm.report.products import Product, several_paths
from codegemm.reporting import by
from codegemm.reproduction import report
from codegemm.reproduction.table import Number, Table

PREDICTED = "predicted"


@dataclass(frozen=True)
class Cell:
    """value: what it sorts by in a column of numbers. marks: words beside it. predicted: that no measurement is."""

    text: str
    value: float | None = None
    marks: tuple[str, ...] = ()
    predicted: bool = False


@dataclass(frozen=True)
class Column:
    """hint: what it means, in a sentence."""

    heading: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Grid:
    """A table. label: what it is of, for those who hear it."""

    label: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...] = field(repr=False)
    predicted: bool = False


Make = Callable[[Product], Cell]


def of_products(label: str, products: Sequence[Product]) -> Grid:
    """A row for each, the fastest of a case and batch first. A column is left out where none has anything to say."""
    cases = list(dict.fromkeys(each.case for each in products))
    ranked = sorted(products, key=lambda each: (cases.index(each.case), each.batch, each.wrong, each.seconds))
    kept = [
        (column, [make(each) for each in ranked])
        for column, make, there in _columns()
        if there is None or there(products)
    ]
    return Grid(
        label,
        tuple(column for column, _ in kept),
        tuple(zip(*(cells for _, cells in kept))),
        all(each.predicted for each in products),
    )


def of_losses(label: str, losses: Sequence[tuple[str, Loss]]) -> Grid:
    """A row for each, with the name of its run."""
    columns = (
        Column("factor", hint="How many times as fast the other is."),
        Column("batch"),
        Column("shape", hint="Sorts by the number of weights."),
        Column("ours", numeric=False, hint="The kernel that auto takes for these weights, or the fastest of ours."),
        Column("bits", hint="Per weight, as the kernel multiplies by it."),
        Column("time, us"),
        Column("faster", numeric=False),
        Column("its bits", hint="Per weight; of other bits the error is another, too."),
        Column("its time, us"),
        Column("faster, too", numeric=False),
        Column("where", numeric=False),
    )
    return Grid(label, columns, tuple(tuple(_of_loss(place, loss)) for place, loss in losses))


def of_table(table: Table) -> Grid:
    """The paper's numbers and ours, with the ratios of both."""
    ours, with_ratio = PREDICTED if table.predicted else "here", table.ratio is not None
    columns = [Column("row", numeric=False), Column("column", numeric=False)]
    if table.paper is not None:
        columns += [Column("paper"), *[Column("paper, x")] * with_ratio]
    columns += [Column(ours), *[Column(f"{ours}, x")] * with_ratio]
    return Grid(
        report.title(table),
        tuple(columns),
        tuple(tuple(_of_cell(table, each)) for each in table.cells()),
        table.predicted,
    )


def micro(seconds: float) -> str:
    """Microseconds; those of less than a hundred with a decimal."""
    return f"{seconds * 1e6:.1f}" if seconds < 1e-4 else f"{seconds * 1e6:.0f}"


def _columns() -> Iterator[tuple[Column, Make, Callable[[Sequence[Product]], bool] | None]]:
    """How a cell is made, and whether there is anything to show; None for what is always there."""

    def told(name: str) -> Callable[[Sequence[Product]], bool]:
        return lambda products: any(getattr(each, name) is not None for each in products)

    yield Column("shape", hint="Sorts by the number of weights."), _shape, None
    yield Column("batch"), lambda each: Cell(str(each.batch), each.batch), None
    yield Column("kernel", numeric=False), _kernel, None
    yield Column("path", numeric=False, hint="The instruction set."), lambda each: Cell(each.path), several_paths
    yield Column("weights", numeric=False), lambda each: Cell(each.config), None
    yield Column("bits/weight"), _number("bits_per_weight", "{:.4g}"), told("bits_per_weight")
    yield Column("time, us", hint="The median."), _time, None
    yield Column("quartiles, us", hint="Sorts by how far they are apart."), _quartiles, told("quartiles")
    yield Column("x dense", hint="How many times as fast as dense."), _predictable("times_dense", "{:.2f}", 1), None
    yield Column("GB/s", hint="Bytes read a second."), _predictable("bytes_per_second", "{:.1f}", 1e-9), None
    hint = "What takes the least time that it could be; of a prediction, what the product waits for longest."
    bound = Column("bound", numeric=False, hint=hint)
    yield bound, lambda each: Cell(each.bound), None
    yield Column("% of bound"), _predictable("bound_share", "{:.0f}", 100), None
    yield Column("error"), _number("error", "{:.1e}"), told("error")
    yield Column("error to original"), _number("error_to_original", "{:.3f}"), told("error_to_original")
    yield Column("case", numeric=False), lambda each: Cell(each.case), _titled


def _titled(products: Sequence[Product]) -> bool:
    """Whether cases say more than their shapes."""
    return any(each.case != by(each.shape) for each in products)


def _shape(product: Product) -> Cell:
    rows, columns = product.shape
    return Cell(by(product.shape), rows * columns)


def _kernel(product: Product) -> Cell:
    told = {"auto": product.chosen, "wrong": product.wrong}
    return Cell(product.kernel, marks=tuple(word for word, is_so in told.items() if is_so))


def _time(product: Product) -> Cell:
    told = {"noisy": product.noisy, PREDICTED: product.predicted}
    words = tuple(word for word, is_so in told.items() if is_so)
    return Cell(micro(product.seconds), product.seconds, words, product.predicted)


def _quartiles(product: Product) -> Cell:
    if product.quartiles is None:
        return Cell("")
    lower, upper = product.quartiles
    return Cell(f"{micro(lower)}-{micro(upper)}", upper - lower)


def _number(name: str, form: str, times: float = 1) -> Make:
    """Of that attribute, if it is known."""

    def make(product: Product) -> Cell:
        value = getattr(product, name)
        return Cell("") if value is None else Cell(form.format(times * value), value)

    return make


def _predictable(name: str, form: str, times: float) -> Make:
    """The same of what follows from a time."""
    make = _number(name, form, times)
    return lambda product: replace(make(product), predicted=product.predicted)


def _of_loss(place: str, loss: Loss) -> Iterator[Cell]:
    own, (fastest, *others) = loss.own, loss.others
    predicted = own.predicted
    words = tuple(["overlap"] * loss.overlap + [PREDICTED] * predicted)
    yield Cell(f"{loss.factor:.2f}", loss.factor, words, predicted)
    yield Cell(str(own.batch), own.batch)
    yield _shape(own)
    yield Cell(own.name)
    yield _bits(own)
    yield Cell(micro(own.seconds), own.seconds, predicted=predicted)
    yield Cell(fastest.name)
    yield _bits(fastest)
    yield Cell(micro(fastest.seconds), fastest.seconds, predicted=predicted)
    yield Cell(", ".join(each.name for each in others))
    yield Cell(place if own.case == by(own.shape) else f"{place}: {own.case}")


def _bits(its: Product) -> Cell:
    """Per weight; nothing where that is not told."""
    return Cell("" if its.bits_per_weight is None else f"{its.bits_per_weight:.2f}", its.bits_per_weight)


def _of_cell(table: Table, cell: tuple[str, str, Number, Number, Number, Number]) -> Iterator[Cell]:
    row, column, theirs, their_ratio, ours, our_ratio = cell
    unit, with_ratio = table.unit or column, table.ratio is not None
    yield Cell(row)
    yield Cell(column)
    if table.paper is not None:
        yield Cell(report.told(theirs, unit), theirs)
        yield from [Cell(report.ratio(their_ratio), their_ratio)] * with_ratio
    noisy = ("noisy",) if (row, column) in table.noisy else ()
    yield Cell(report.told(ours, unit), ours, noisy, table.predicted)
    yield from [Cell(report.ratio(our_ratio), our_ratio, (), table.predicted)] * with_ratio
