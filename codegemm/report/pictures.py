"""The report's pictures: SVG that stands in a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from codegemm.comparison import plot as bars
from codegemm.comparison.plot import Bar, Bars
from codegemm.report.products import Product, several_paths
from codegemm.reproduction import paper
from codegemm.reproduction import plot as reproduction
from codegemm.reproduction.table import Table

_MOST = 4  # batches in a picture: more bars can't be told apart
# Text stays text, which nothing in it can turn into formulas; the same picture has the same names in it.
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "codegemm", "text.parse_math": False, "hatch.linewidth": 0.6}


@dataclass(frozen=True)
class Picture:
    """svg: markup that refers to nothing outside of it."""

    svg: str
    caption: str
    title: str = ""


def of_products(products: Sequence[Product], prefix: str) -> Iterator[Picture]:
    """One a case, of what has a time in terms of dense and is right. prefix: of the names in these pictures."""
    drawn = [each for each in products if each.kernel != "dense" and each.times_dense is not None and not each.wrong]
    with_path = several_paths(drawn)
    for number, case in enumerate(dict.fromkeys(each.case for each in drawn)):
        yield _of_case(case, [each for each in drawn if each.case == case], with_path, f"{prefix}-{number}")


def _of_case(case: str, products: Sequence[Product], with_path: bool, prefix: str) -> Picture:
    every = sorted({each.batch for each in products})
    batches, predicted = _spread(every), all(each.predicted for each in products)
    svg = _svg(lambda: bars.case_figure(_bars(products, batches, with_path), predicted), prefix)
    what = "Predicted speed" if predicted else "Speed"
    rest = "" if batches == every else f" {len(batches)} of {len(every)} batches are drawn."
    return Picture(svg, f"{what} in multiples of dense, which is the dotted line.{rest}", case)


def of_table(table: Table, prefix: str) -> Picture:
    """The paper's numbers and ours."""
    svg = _svg(lambda: reproduction.table_figure(table), prefix)
    ours = "Blue, hatched: predicted" if table.predicted else "Blue: measured here"
    points = "Predicted times" if table.predicted else "Measured times"
    return Picture(svg, f"{points}." if table.paper is None else f"Grey: the paper ({paper.machine()}). {ours}.")


def _bars(products: Sequence[Product], batches: Sequence[int], with_path: bool) -> Bars:
    """Of one kernel beside each other."""
    kernels = list(dict.fromkeys(each.kernel for each in products))
    found: dict[str, dict[int, Bar]] = {}
    for each in sorted(products, key=lambda each: kernels.index(each.kernel)):
        if each.batch in batches and each.times_dense is not None:
            label = " ".join(filter(None, (each.kernel, each.path if with_path else "", each.config)))
            quartiles = each.quartiles or (each.seconds, each.seconds)
            found.setdefault(label, {})[each.batch] = Bar.of(each.seconds, quartiles, each.times_dense)
    return found


def _spread(batches: Sequence[int]) -> list[int]:
    """A few of them, the first and the last among them."""
    if len(batches) <= _MOST:
        return list(batches)
    return [batches[round(place * (len(batches) - 1) / (_MOST - 1))] for place in range(_MOST)]


def _svg(draw: Callable[[], Any], prefix: str) -> str:
    """The element alone; prefix: what its names begin with, which are the page's."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context(_STYLE):
        draw().savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], count=1, flags=re.DOTALL)
    return re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{prefix}-", text)
