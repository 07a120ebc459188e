"""`make tables`: what documents and `auto` get of what was measured."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest

from benchmarks.cpu.measured import Bandwidth, Machine, Measured, Timed
from benchmarks.cpu.report import write_report
from benchmarks.tables import __main__ as made
from benchmarks.tables import cpu, crossovers, files, gpu, markdown, page, reproduced
from benchmarks.targets import MAIN
from codegemm import tables
from codegemm.engines.cpu import isa
from codegemm.reproduction.paper import published
from codegemm.reproduction.table import Table, as_fast_as
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
    """Where the files and the documents are, but for those of a GPU."""
    for path in files.RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    for place in (*made.DOCUMENTS, made.PAGE):
        shutil.copy(place, tmp_path)
    monkeypatch.setattr(made, "PAGE", tmp_path / made.PAGE.name)
    monkeypatch.setattr(made, "DOCUMENTS", [tmp_path / document.name for document in made.DOCUMENTS])
    monkeypatch.setattr(tables, "CROSSOVERS", tmp_path / "crossovers.json")
    return tmp_path


def test_documents_are_what_was_measured():
    texts = made.written()
    documents = [document.read_text() for document in made.DOCUMENTS]
    assert all(markdown.renewed(document, texts) == document for document in documents), "run `make tables`"
    for name in texts:  # each in one of them
        assert sum(markdown.marks(name)[0] in document for document in documents) == 1


def test_the_page_of_results_is_what_was_measured():
    assert page.page() == made.PAGE.read_text(), "run `make tables`"


def test_no_number_is_written_into_the_page():
    """But in names: of configurations and types, instruction sets, precisions, models."""
    names = r"`[^`]*`|\]\([^)]*\)|<!--.*-->|float\d+|bfloat\d+|AVX2|Llama-3-8B"
    assert not re.search(r"\d", re.sub(names, "", page.TEMPLATE.read_text()))


def test_the_page_follows_its_files(results):
    """Another file, other numbers."""
    before = page.page()
    assert "up to 512 (for bfloat16 up to 16)" in " ".join(before.split())
    result = json.loads((results / "compare-avx2.json").read_text())
    for number, row in enumerate(result["rows"]):
        row["noisy"] = number % 4 == 0
        row["times_dense"] = 3.21
    (results / "compare-avx2.json").write_text(json.dumps(result))
    text = page.page()
    assert "medians of 7 rounds, 2" in text  # percent
    assert text.count("| 3.21 | 3.21 | 3.21 |") > 10
    assert text != before


def timed(kernel, config, batch, seconds, taken=()):
    return Timed((64, 512), 2, kernel, config, batch, tuple(seconds), 800, "full" in taken, "fast" in taken, 1e-4)


def write_run(results, path, rows, disturbances=()):
    """As `make cpu` would, in place of all others."""
    for file in results.glob("cpu-*.json"):
        file.unlink()
    found = Measured(rows, bandwidths=[Bandwidth((64, 512), 2, (1000.0, 1000.0, 1000.0))])
    machine = Machine("a processor", path, path, {}, "abc1234", disturbances=disturbances)
    write_report(found, machine, results / f"cpu-{path}.json")


BY_BATCH = """\
| kernel | weights | batch 1 | batch 16 |
| --- | --- | --- | --- |
| `auto` | m1v4g128 | 4.00 | 0.40 |
| `auto` | m2v8g128 | 4.00 | 0.40 |
| `auto_fast` | m1v4g128 | 8.00 | 0.40 |
| `auto_fast` | m2v8g128 | 8.00 | 0.40 |
| `torch_fp32` |  |  | 0.20 |
| `ggml` | q2_k | 16.00 |  |
"""


def test_ratios_by_instruction_set(results, rng):
    rows = []
    for config in MAIN:
        rows += [
            timed("psumbook", config, 1, [2.0] * 3, ["full"]),
            timed("psumbook_fast", config, 1, [1.0] * 3, ["fast"]),
        ]
        rows.append(timed("psumbook", config, 16, [1.0] * 3, ["full", "fast"]))
    rows += [timed("ggml", "q2_k", 1, [0.5] * 3), timed("torch_fp32", "", 16, [2.0] * 3)]
    rows += [timed("dense", "", n, rng.permutation(seconds)) for n, seconds in ((1, [8.0] * 3), (16, [0.2, 0.4, 0.6]))]
    write_run(results, "avx2", rows)
    where = "a processor (avx2), 2 threads, at abc1234 ([cpu-avx2.json](../benchmarks/results/cpu-avx2.json))"
    assert cpu.by_batch() == f"{where}:\n\n{BY_BATCH}"
    [*_, line] = cpu.ratios().splitlines()
    assert line == f"| {where} |  | 0.50 | 2.00 | 40 | 80 |"
    write_run(results, "avx2", rows, ("loud neighbours",))
    assert cpu.by_batch() == f"{where}; the machine was busy: loud neighbours:\n\n{BY_BATCH}"
    assert cpu.by_batch() in page.page()
    assert cpu.ratios() in page.page()


def test_instruction_sets_are_in_their_order(results):
    found = [machine.path for machine, _ in files.ratios().values()]
    assert found == [each.name for each in isa.ALL if each.name in found]
    assert len(found) == len(list(results.glob("cpu-*.json")))


def test_what_auto_took_too_slow(results):
    """A product that only `psumbook` was measured of says nothing, nor one that it is slower for."""
    rows = [
        timed("psumbook", "m2v8g128", 1, [1.0, 1.0, 1.0], ["full"]),
        timed("dequant", "m2v8g128", 4, [3.0, 8.0, 3.0], ["full"]), timed("psumbook", "m2v8g128", 4, [2.0, 2.0, 1.0]),
        timed("dequant", "m2v8g128", 16, [1.0, 1.0, 1.0], ["full"]), timed("psumbook", "m2v8g128", 16, [2.0, 2.0, 1.0]),
    ]  # fmt: skip
    write_run(results, "avx512", rows)
    product = "a processor (avx512), 2 threads, at abc1234: 64 x 512, m2v8g128, 4 rows of x"
    assert cpu.slower_than_psumbook() == f"- {product}: `dequant`, and `psumbook` is 3.0 times as fast\n"
    write_run(results, "avx512", rows[:1])
    assert cpu.slower_than_psumbook() == "- none\n"


def test_crossovers_are_what_was_measured():
    found = crossovers.crossovers(files.of_gpus())
    stored = json.loads(tables.CROSSOVERS.read_text()) if tables.CROSSOVERS.exists() else {}
    assert stored == json.loads(json.dumps(found))


def test_nothing_measured_is_said(results):
    for file in results.glob("reproduce-*.json"):
        file.unlink()
    made.main()
    text = (results / "results.md").read_text()
    assert gpu.NOTHING in text
    assert "Beside the paper" not in text
    assert not (results / "crossovers.json").exists()


def test_tables_of_a_gpu(results):
    for part in ("bench-8b", "bench-70b"):
        (results / "nvidia-h200").mkdir(exist_ok=True)
        (results / "nvidia-h200" / f"{part}.json").write_text(json.dumps(REPORT))
    (results / "nvidia-h200" / "counters.json").write_text("[]")
    made.main()
    text = (results / "results.md").read_text()
    assert gpu.NOTHING not in text
    assert "NVIDIA H200, a copy moving 4300 GB/s, geometric means over 2 layers of Llama-3:" in text
    assert "| kernel | weights | batch 1 | batch 2 | batch 4 | batch 8 |\n| --- |" in text
    assert "| `psumbook` | m1v4g128 | 6.00 | 2.00 |  | 2.00 |\n| `dequant` | m1v4g128 | 2.00 |" in text
    assert "| 64 x 512 | m1v4g128 | `psumbook` | 1.0 | 3 | 50 | 4.00 |" in text
    made.main()
    assert (results / "results.md").read_text() == text


def test_crossovers_for_auto(results, monkeypatch):
    automatic = {"psumbook": True, "dequant": True, "aqlm": False}
    kernels = [SimpleNamespace(name=name, automatic=may) for name, may in automatic.items()]
    monkeypatch.setattr(crossovers, "registered", lambda engine: kernels)
    (results / "nvidia-h200").mkdir()
    (results / "nvidia-h200" / "bench-8b.json").write_text(json.dumps(REPORT))
    made.main()
    assert set(tables.crossovers(90, tables.CROSSOVERS)) == {
        Choice("m1v4g128", (64, 512), (1, 2), "float16", "psumbook"),
        Choice("m1v4g128", (64, 512), (4, 8), "float16", "dequant"),
        Choice("m1v4g128", (512, 512), (1, 1), "float16", "psumbook"),
        Choice("m1v4g-1", (64, 512), (1, 1), "float16", "dequant"),
    }


@pytest.fixture
def experiments(rng):
    """What `codegemm reproduce --json` writes of three experiments: of times, of shares, and one without a table."""
    paper = published("table8")
    times = Table.beside(
        "table8", "Configurations", "More take longer.", [[20e3, None, *rng.uniform(1e3, 9e3, 5)]], baseline="dense",
        in_terms="times as fast as dense", noisy=frozenset({("8192 x 8192", "m1v4g128")}), ratio=as_fast_as(0),
    )  # fmt: skip
    shares = Table.beside("table6", "Building", "Shares.", [[12.34, 5.0], [6.0, 7.0]], notes=("On one thread.",))
    points = Table(
        name="figure4", title="Trade-offs", caption="Of a Gaussian matrix.", unit="", rows=("m1v8g128",), paper=None,
        columns=("bits/weight", "time", "relative MSE"), ours=((2.126, 1234.5, 0.1),),
    )  # fmt: skip
    return {
        "kind": "reproduction", "machine": {"device": "a processor", "threads": 2}, "disturbances": ["load 9"],
        "predicted": None, "paper": f"Somebody: {len(paper.rows)} row", "missing": {"AQLM 1x16, batch 1": "no reason"},
        "tables": [table.as_json() for table in (shares, times, points)],
    }  # fmt: skip


def test_the_papers_numbers_and_ours(results, experiments):
    (results / "reproduce-here.json").write_text(json.dumps(experiments))
    (results / "a-gpu").mkdir()
    (results / "a-gpu" / "reproduce.json").write_text(json.dumps(experiments))
    made.main()
    text = (results / "results.md").read_text()
    section = text[text.index("## Beside the paper") :]
    assert section == reproduced.section().lstrip()
    for file in ("reproduce-here.json", "a-gpu/reproduce.json"):
        told = f"Paper: Somebody: 1 row. Here: a processor, 2 threads ([{file}](../benchmarks/results/{file}))."
        assert told in section
    assert "The machine was busy: load 9." in section
    assert "- left out: AQLM 1x16, batch 1: no reason\n" in section
    assert "Table 6: Building (%):\n\n|  | 4096 x 4096 | 8192 x 8192 |" in section
    assert "| m2v8g128 | 30.5 % / 12.3 % | 45.4 % / 5.0 % |" in section
    assert "\nShares. On one thread.\n" in section
    assert "Figure 4: Trade-offs:" in section
    assert "| m1v8g128 | 2.13 | 1.23 ms | 0.1000 |" in section


def test_ratios_beside_the_papers(results, experiments):
    (results / "reproduce-here.json").write_text(json.dumps(experiments))
    _, times, _ = experiments["tables"]
    [[_, dense, _, *ours]], [[_, *paper]] = times["ours"], times["paper"]
    wanted = [f"{paper[0] / paper[1]:.2f} / -"]
    wanted += [f"{paper[0] / p:.2f} / {dense / o:.2f}" for p, o in zip(paper[2:], ours)]
    wanted[1] += "!"
    section = reproduced.section()
    assert "Table 8: Configurations (times as fast as dense):\n\n|  | m1v8g128 | m1v4g128 |" in section
    assert f"| 8192 x 8192 | {' | '.join(wanted)} |" in section
