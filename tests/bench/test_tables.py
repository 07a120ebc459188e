"""`make tables`: what documents and `auto` get of what was measured."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import tables as made
from codegemm import tables
from codegemm.tables import Choice


def row(kernel, config, shape, batch, seconds, times_dense=2.0, chosen=False):
    return {
        "kernel": kernel, "config": config, "shape": list(shape), "batch": batch, "seconds": seconds,
        "bandwidth_share": 0.5, "chosen": chosen, "calls": 9, "bytes_read": 3000, "times_dense": times_dense,
        "error": 1e-4,
    }  # fmt: skip


REPORT = {
    "device": "NVIDIA H200", "arch": 90, "bandwidth": 4.3e12, "version": "0", "left_out": [], "targets": [],
    "rows": [
        row("dense", "", (64, 512), 1, 4e-6, 1.0),
        row("psumbook", "m1v4g128", (64, 512), 1, 1e-6, 4.0, True),
        row("psumbook", "m1v4g128", (64, 512), 2, 2e-6),
        row("psumbook", "m1v4g128", (64, 512), 8, 9e-6),
        row("psumbook", "m1v4g128", (512, 512), 1, 1e-6, 9.0),
        row("dequant", "m1v4g128", (64, 512), 1, 2e-6),
        row("dequant", "m1v4g128", (64, 512), 2, 3e-6),
        row("dequant", "m1v4g128", (64, 512), 4, 3e-6),
        row("dequant", "m1v4g128", (64, 512), 8, 3e-6),
        row("aqlm", "m1v4g128", (64, 512), 1, 1e-9),
        row("dequant", "m1v4g512", (64, 512), 1, 1e-6, None),
    ],
}  # fmt: skip


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(made, "RESULTS", tmp_path)
    documents = [tmp_path / document.name for document in made.DOCUMENTS]
    for copied, document in zip(documents, made.DOCUMENTS):
        copied.write_text(document.read_text())
    monkeypatch.setattr(made, "DOCUMENTS", documents)
    monkeypatch.setattr(tables, "CROSSOVERS", tmp_path / "crossovers.json")
    for name in (*made.CPU_FILES, *made.TORCH_FILES, "quantize.json", "quantize-minilm.json"):
        (tmp_path / name).write_text((made.ROOT / "benchmarks" / "results" / name).read_text())
    return tmp_path


def test_documents_are_what_was_measured():
    texts = made.written()
    documents = [document.read_text() for document in made.DOCUMENTS]
    assert all(made.renewed(document, texts) == document for document in documents)
    for name in texts:  # each in one of them
        assert sum(f"<!-- {name}: written by" in document for document in documents) == 1


def test_crossovers_are_what_was_measured():
    found = made.crossovers(made.reports())
    stored = json.loads(tables.CROSSOVERS.read_text()) if tables.CROSSOVERS.exists() else {}
    assert stored == json.loads(json.dumps(found))


def test_nothing_measured_is_said(results):
    made.main()
    assert made.NOTHING in (results / "results.md").read_text()
    assert not (results / "crossovers.json").exists()


def test_tables_of_a_gpu(results):
    for part in ("bench-8b", "bench-70b"):
        (results / "nvidia-h200").mkdir(exist_ok=True)
        (results / "nvidia-h200" / f"{part}.json").write_text(json.dumps(REPORT))
    (results / "nvidia-h200" / "counters.json").write_text("[]")
    made.main()
    text = (results / "results.md").read_text()
    assert made.NOTHING not in text
    assert "NVIDIA H200, a copy moving 4300 GB/s, geometric means over 2 layers of Llama-3:" in text
    assert "| kernel | weights | batch 1 | batch 2 | batch 4 | batch 8 |\n| --- |" in text
    assert "| `psumbook` | m1v4g128 | 6.00 | 2.00 |  | 2.00 |\n| `dequant` | m1v4g128 | 2.00 |" in text
    assert "| 64 x 512 | m1v4g128 | `psumbook` | 1.0 | 3 | 50 | 4.00 |" in text
    made.main()
    assert (results / "results.md").read_text() == text


def test_crossovers_for_auto(results, monkeypatch):
    automatic = {"psumbook": True, "dequant": True, "aqlm": False}
    kernels = [SimpleNamespace(name=name, automatic=may) for name, may in automatic.items()]
    monkeypatch.setattr(made, "registered", lambda engine: kernels)
    (results / "nvidia-h200").mkdir()
    (results / "nvidia-h200" / "bench-8b.json").write_text(json.dumps(REPORT))
    made.main()
    assert set(tables.crossovers(90, tables.CROSSOVERS)) == {
        Choice("m1v4g128", (64, 512), (1, 2), "float16", "psumbook"),
        Choice("m1v4g128", (64, 512), (4, 8), "float16", "dequant"),
        Choice("m1v4g128", (512, 512), (1, 1), "float16", "psumbook"),
        Choice("m1v4g-1", (64, 512), (1, 1), "float16", "dequant"),
    }
