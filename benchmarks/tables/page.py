"""docs/results.md: page.md with its numbers and tables."""

from __future__ import annotations

from pathlib import Path
from string import Template

from benchmarks.cpu.measured import DENSE, TORCH_BF16
from benchmarks.tables import cpu, files, gpu, reproduced
from benchmarks.tables.files import Row

TEMPLATE = Path(__file__).with_name("page.md")


def page() -> str:
    """The whole document."""
    most = {target.against: target.most for target in cpu.SLOWEST}
    text = Template(TEMPLATE.read_text()).substitute(
        cpu=cpu.means(),
        cpu_shapes=_shapes(files.of_llama(files.rows(files.COMPARED[0]))),
        ratios=cpu.ratios(),
        batches=cpu.by_batch(),
        most_rows=most[DENSE],
        most_rows_bfloat16=most[TORCH_BF16],
        slower=cpu.slower_than_psumbook(),
        gpu=gpu.tables(),
        reproduced=reproduced.section(),
    )
    return f"{text.rstrip()}\n"


def _shapes(rows: list[Row]) -> int:
    """How many there are."""
    return len({tuple(row["shape"]) for row in rows})
