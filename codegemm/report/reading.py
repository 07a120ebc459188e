"""What a report is of: files that other commands wrote, and predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codegemm.comparison.compare import BATCHES
from codegemm.comparison.pairs import machine
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.formats.format import spec_of
from codegemm.measuring.sources import LLAMA_3, RANDOM_CONFIGS
from codegemm.prediction import copy_bandwidth, predict
from codegemm.report.products import Product, product
from codegemm.reproduction.table import Table

_READ = (
    "must be what `codegemm compare --json`, `codegemm reproduce --json` or `make gpu` (bench-*.json) wrote, with "
    "times of products or tables"
)


@dataclass(frozen=True)
class Source:
    """Measurements of one run, or predictions for a GPU, as plain data.

    name: the file's. machine: as the run tells it; empty for predictions, which are for the GPU `predicts`. tables: of
    a reproduction, which cites `paper`. disturbances, remarks: of the run, in words.
    """

    name: str
    machine: Mapping[str, Any] = field(default_factory=dict)
    products: tuple[Product, ...] = ()
    tables: tuple[Table, ...] = ()
    paper: str = ""
    predicts: str = ""
    disturbances: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Whose times they are."""
        return f"{self.predicts}, predicted" if self.predicts else str(self.machine.get("device") or "unknown machine")


def read(path: str | Path) -> Source:
    """Of a file. ValueError that names it for one of another kind, OSError for one that can't be read."""
    try:
        data = json.loads(Path(path).read_text())
        return _source(str(path), data)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: {_READ} ({said})") from None


def predictions(gpu: str) -> Source:
    """Of every kernel for the layers of Llama-3, on a GPU by its name."""
    model = KNOWN[gpu]
    shapes = [shape for its in LLAMA_3.values() for shape in its]
    rows = predict(model, shapes, RANDOM_CONFIGS, BATCHES)
    dense = {(row.shape, row.batch): row.seconds for row in rows if row.kernel == "dense"}
    products = []
    for row in rows:
        bits = spec_of(row.shape, row.config).bits_per_weight if row.config else 16.0
        told = asdict(row) | {"bits_per_weight": bits}
        told["bytes_read"] = row.bandwidth_share * copy_bandwidth(model) * row.seconds
        if (row.shape, row.batch) in dense:
            told["times_dense"] = dense[row.shape, row.batch] / row.seconds
        products.append(product(told, predicted=True))
    return Source(f"predictions for {gpu}", products=tuple(products), predicts=gpu)


def _source(name: str, data: Any) -> Source:
    rows, tables = data.get("rows") or [], data.get("tables") or []
    if not rows and not tables:
        raise ValueError("has neither rows nor tables")
    told = dict(machine(data))
    return Source(
        name=name,
        machine=told,
        products=tuple(map(product, rows)),
        tables=tuple(map(Table.of_json, tables)),
        paper=str(data.get("paper") or ""),
        predicts="" if rows else str(data.get("predicted") or ""),
        disturbances=tuple(map(str, data.get("disturbances") or ())),
        remarks=tuple(_remarks(data)),
    )


def _remarks(data: Mapping[str, Any]) -> Iterator[str]:
    """What was left out, and what failed."""
    left_out = data.get("left_out") or {}
    texts = left_out if isinstance(left_out, list) else [f"{name}: {why}" for name, why in left_out.items()]
    yield from (f"left out: {text}" for text in texts)
    for case, reasons in (data.get("skipped") or {}).items():
        yield from (f"left out: {case}: {config}: {reason}" for config, reason in reasons.items())
    for name, reason in (data.get("missing") or {}).items():
        yield f"left out: {name}: {reason}"
    for each in data.get("failed") or ():
        told = (each.get("kernel"), each.get("path"), each.get("config"), each.get("case"))
        yield f"failed: {' '.join(filter(None, told))}: {each.get('error', '')}"
