"""`codegemm report`: what is read, what is on the page, and that a browser shows it."""

import html.parser
import importlib.resources
import json
import math
import re
import shutil
import subprocess

import pytest
from click.testing import CliRunner
from emulator import cases
from support import ROOT

from codegemm.cli import cli, options
from codegemm.report import grids, losing, page, reading
from codegemm.report.products import product
from codegemm.reproduction.paper import published
from codegemm.reproduction.table import Table, as_fast_as, as_much_as

H200 = ROOT / "benchmarks" / "results" / "nvidia-h200" / "bench-8b.json"
HOSTILE = "<script>alert(1)</script>$\\frac{--><b>"
CHROMIUM = shutil.which("chromium")


def row(kernel="psumbook", config="m1v4g128", batch=1, seconds=1e-5, shape=(64, 128), **more):
    """As files have it, with what is needed alone."""
    return {"kernel": kernel, "config": config, "batch": batch, "seconds": seconds, "shape": list(shape)} | more


def measured(tmp_path, rows, name="result.json", **more):
    path = tmp_path / name
    path.write_text(
        json.dumps({"machine": {"device": "a machine", "engine": "cpu", "threads": 3}, "rows": rows} | more)
    )
    return path


def report(*arguments):
    return CliRunner().invoke(cli, ["report", *map(str, arguments)], standalone_mode=False)


def page_of(tmp_path, *arguments):
    done = report(*arguments, "-o", tmp_path / "page.html")
    assert done.exception is None, done.exception
    return (tmp_path / "page.html").read_text()


class Reader(html.parser.HTMLParser):
    """The texts of a page's cells, by table and row; the tags that it has."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._inside = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.tables[-1][-1][-1] += data


def test_of_a_row_what_is_optional_may_lack():
    bare = product(row())
    assert (bare.case, bare.quartiles, bare.times_dense, bare.bound_share) == ("64 x 128", None, None, None)
    assert not any((bare.noisy, bare.wrong, bare.chosen, bare.predicted))
    full = product(
        row(quartiles=[9e-6, 1.2e-5], bytes_read=500, bandwidth_share=0.25, error=1e-2, tolerance=1e-3, new=1)
    )
    assert full.noisy
    assert full.wrong
    assert full.bytes_per_second == pytest.approx(5e7)
    assert (full.bound, full.bound_share) == ("memory", 0.25)
    told = product(row(bound="lookups", bound_seconds=4e-6, bandwidth_share=0.25))
    assert (told.bound, told.bound_share) == ("lookups", pytest.approx(0.4))


@pytest.mark.parametrize(
    "change", [{"seconds": 0}, {"seconds": "soon"}, {"seconds": None}, {"shape": [3]}, {"batch": "x"}]
)
def test_what_is_no_time_is_refused(change):
    with pytest.raises((ValueError, TypeError)):
        product(row() | change)


def test_losing_cells():
    """By the largest factor; of the kernel that `auto` takes, or the package's fastest where it takes another; against
    right products of others on its path."""
    rows = [
        row(seconds=4e-5, chosen=True, path="avx2"),
        row("dequant", seconds=1e-6, path="avx2"),  # this package's own
        row("psumbook_fast", seconds=1e-6),
        row("dense", "", seconds=2e-5),
        row("quip", "e8p", seconds=1e-5),
        row("aqlm", "m2v8g-1", seconds=1e-6, wrong=True),
        row("aqlm", "m2v8g-1", seconds=1e-6, path="plain"),
        row("aqlm", "m2v8g-1", seconds=5e-5, path="avx2"),
        row(config="m2v8g128", seconds=1e-7, chosen=True),
        row("dequant", batch=4, seconds=3e-5, chosen=True, quartiles=[1e-5, 4e-5]),
        row("dense", "", batch=4, seconds=2e-5, quartiles=[1e-5, 2e-5]),
        row("dense", "", batch=4, seconds=1e-6, shape=(128, 64)),
        row("lutgemm", "q2g128", batch=2, seconds=1e-5, chosen=True),
        row("psumbook", "q2g128", batch=2, seconds=2e-5),
        row("dequant", "q2g128", batch=2, seconds=3e-5),
        row("psumbook_fast", "q2g128", batch=2, seconds=1e-6),
    ]
    products = [product(each) for each in rows]
    found = list(losing.losses(products))
    assert [(loss.own.kernel, loss.own.batch, [each.name for each in loss.others]) for loss in found] == [
        ("psumbook", 1, ["quip e8p", "dense"]),
        ("psumbook", 2, ["lutgemm q2g128"]),
        ("dequant", 4, ["dense"]),
    ]
    assert [loss.factor for loss in found] == pytest.approx([4, 2, 1.5])
    assert [loss.overlap for loss in found] == [False, False, True]
    assert len(losing.cells(products)) == 4


def test_where_nothing_is_lost_it_says_so(tmp_path):
    won = page_of(tmp_path, measured(tmp_path, [row(chosen=True), row("dense", "", seconds=2e-5)]))
    assert re.search(r"There is none: in each of 1\s+cells", won)
    other = page_of(tmp_path, measured(tmp_path, [row("dense", "")]))
    assert "No cell can be told of" in other
    lost = page_of(tmp_path, measured(tmp_path, [row(chosen=True), row("dense", "", seconds=5e-6)]))
    assert "In 1 of 1 cells" in lost
    assert Reader(lost).tables[0][1][0] == "2.00"


def test_every_row_is_there(tmp_path):
    rows = json.loads(H200.read_text())["rows"]
    tables = Reader(page_of(tmp_path, H200)).tables
    assert len(tables) == 2
    heading, *lines = tables[1]
    places = [heading.index(name) for name in ("shape", "batch", "kernel", "weights", "x dense")]
    found = sorted(tuple(line[place].removesuffix(" auto") for place in places) for line in lines)
    assert found == sorted(
        (" x ".join(map(str, each["shape"])), str(each["batch"]), each["kernel"], each["config"],
         f"{each['times_dense']:.2f}") for each in rows
    )  # fmt: skip


def test_numbers_sort_as_numbers():
    """Every cell of a column of numbers that has a text has a value."""
    grid = grids.of_products("all", reading.read(H200).products)
    for number, column in enumerate(grid.columns):
        for cell in (line[number] for line in grid.rows):
            assert not column.numeric or not cell.text or math.isfinite(cell.value)
    assert "case" not in [column.heading for column in grid.columns]


def test_hostile_names_are_text(tmp_path):
    rows = [row(HOSTILE, HOSTILE, case=HOSTILE, times_dense=2.0, bound=HOSTILE, bound_seconds=1e-6)]
    path = measured(tmp_path, rows, disturbances=[HOSTILE], left_out={HOSTILE: HOSTILE}, machine={"device": HOSTILE})
    text = page_of(tmp_path, path)
    tags = Reader(text).tags
    assert tags.count("script") == 1
    assert "b" in tags  # the picture's title
    assert "alert(1)</script>" not in text
    assert text.count("&lt;script&gt;alert(1)") >= 6


def test_a_page_needs_nothing_else(tmp_path):
    text = page_of(tmp_path, H200, "--predict", "h100")
    fetched = re.findall(r"(?:src|(?<!xlink:)href)=\"(?!#)([^\"]*)|url\((?!#)|@import|<link|http-equiv", text)
    assert fetched == []
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text)) <= {
        pair for name in names for pair in ((name, ""), ("", name))
    }


def test_predictions_are_marked(tmp_path):
    text = page_of(tmp_path, "--predict", "h100")
    heading, *lines = Reader(text).tables[-1]
    assert len(lines) > 300
    assert all(line[heading.index("time, us")].endswith(" predicted") for line in lines)
    assert {line[heading.index("x dense")] for line in lines if line[heading.index("kernel")] == "dense"} == {"1.00"}
    assert "Nothing here was measured" in text
    assert "batch 1, predicted" in text
    assert text.count("Predicted speed") == text.count("<figure>")
    assert "predicted" not in page_of(tmp_path, measured(tmp_path, [row()])).partition("<body>")[2]


@pytest.mark.parametrize(("baseline", "ratio"), [("dense", as_fast_as(0)), ("Llama-3 70B", as_much_as(1)), ("", None)])
def test_a_table_is_read_as_it_was_written(baseline, ratio, rng):
    paper = published("table2")
    ours = rng.random((len(paper.rows), len(paper.columns))).tolist()
    ours[0][2] = None
    noisy = frozenset({("Llama-3 8B", "dense")})
    table = Table.beside("table2", "A", "B", ours, baseline=baseline, ratio=ratio, noisy=noisy, predicted=True)
    told = json.loads(json.dumps(table.as_json()))
    again = Table.of_json(told)
    assert list(again.cells()) == list(table.cells())
    assert again.as_json() == told
    with pytest.raises(ValueError, match="must have 2 rows"):
        Table.of_json(told | {"ours": [told["ours"][0], told["ours"][1][:-1]]})


def test_a_reproductions_tables(tmp_path):
    """The paper's numbers and ours side by side, with what they are in terms of dense."""
    paper = published("table2")
    ours = [[cell / 2 for cell in cells] for cells in paper.rows.values()]
    ours[1][3] = None
    table = Table.beside("table2", "A block", "So.", ours, baseline="dense", in_terms="times", ratio=as_fast_as(0))
    path = tmp_path / "r.json"
    path.write_text(json.dumps({
        "kind": "reproduction", "machine": {"device": "a machine"}, "tables": [table.as_json()], "paper": "Cited: it",
        "missing": {"qtip": "no such kernel"},
    }))  # fmt: skip
    text = page_of(tmp_path, path)
    heading, *lines = Reader(text).tables[0]
    assert heading == ["row", "column", "paper", "paper, x", "here", "here, x"]
    assert len(lines) == 16
    assert lines[-1] == ["Llama-3 70B", "m1v4g128", "293.8 us", "3.78", "146.9 us", "3.78"]
    assert lines[11][4] == "-"
    for said in ("Table 2: A block", "Cited: it", "left out: qtip: no such kernel", "a machine", "Grey: the paper"):
        assert said in text


def test_machines_have_a_heading_each(tmp_path):
    first = measured(tmp_path, [row()], "a.json", disturbances=["others took 1.5 of 2 processors"])
    second = measured(tmp_path, [row(batch=2)], "b.json")
    text = page_of(tmp_path, first, second, H200)
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Where it loses", "a machine", "NVIDIA H200"]
    assert text.count("others took 1.5 of 2 processors") == 1
    assert page.facts({"threads": 2, "bandwidth": 1e10, "engine": "cpu", "commit": None}) == {
        "engine": "cpu", "threads": "2", "memory bandwidth": "10.0 GB/s (read)",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{}]}', '{"rows": 3}', '{"tables": [{"name": "x"}]}', "\0"])
def test_a_file_of_another_kind_is_named(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    done = report(path, "-o", tmp_path / "page.html")
    assert isinstance(done.exception, ValueError)
    assert str(done.exception).startswith(f"{path}: must be what `codegemm compare --json`")
    assert not (tmp_path / "page.html").exists()


def test_what_is_asked_is_checked_first(tmp_path, monkeypatch):
    path = measured(tmp_path, [row()])
    before = path.read_bytes()
    for arguments, said in (
        ([path, "-o", path], "which is read"),
        (["-o", tmp_path / "page.html"], "name RESULTS"),
        ([tmp_path / "none.json", "-o", tmp_path / "page.html"], "does not exist"),
        ([path, "-o", tmp_path / "no" / "page.html"], "there is no folder"),
        ([path], "Missing option"),
    ):
        assert said in str(report(*arguments).exception.format_message())
    assert path.read_bytes() == before
    find = options.importlib.util.find_spec
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name))
    said = report(path, "-o", tmp_path / "page.html").exception.format_message()
    assert said == "jinja2 not installed: pip install 'codegemm[report]'"


def test_data_files_are_found():
    for package, name in (("codegemm.report", page.TEMPLATE), ("codegemm.reproduction", "paper.json")):
        assert importlib.resources.files(package).joinpath(name).is_file()
        assert re.search(
            rf"^{re.escape(package)} = \*\.{name.rpartition('.')[2]}$", (ROOT / "setup.cfg").read_text(), re.M
        )


PROBE = """<script>
const heading = name => [...document.querySelectorAll("th")].find(
  th => th.textContent === name && th.closest("article"));
const column = th => [...th.closest("table").tBodies[0].rows].map(row => row.cells[th.cellIndex].dataset.value);
const sorted = name => {
  const th = heading(name);
  th.querySelector("button").click();
  const up = column(th).map(Number), said = th.getAttribute("aria-sort");
  th.querySelector("button").click();
  const down = column(th).map(Number);
  return said === "ascending" && up.every((x, i) => !i || up[i - 1] <= x)
    && down.every((x, i) => !i || down[i - 1] >= x) && up[0] < up[up.length - 1];
};
const wide = [...document.querySelectorAll("body *:not(.box *):not(svg *)")].filter(
  each => each.getBoundingClientRect().right > document.documentElement.clientWidth + 1);
const found = document.createElement("pre");
found.id = "probe";
found.textContent = JSON.stringify({
  width: innerWidth, wide: wide.map(each => each.tagName), scroll: document.documentElement.scrollWidth,
  rows: [...document.querySelectorAll("table")].map(table => table.tBodies[0].rows.length),
  sorted: ["time, us", "batch", "x dense"].map(sorted),
  headings: [...document.querySelectorAll("h2")].map(h => h.innerText),
});
document.body.append(found);
</script></body>"""


@pytest.mark.skipif(not cases.ALL, reason="for make test-all")
@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_in_a_browser(tmp_path):
    """What a person sees: headings, all rows, tables that sort; nothing wider than a phone's window; no errors."""
    text = page_of(tmp_path, H200, ROOT / "benchmarks" / "results" / "compare-vnni.json")
    frame = '<iframe src="copy.html" style="width:380px;height:900px;border:0"></iframe>'
    (tmp_path / "copy.html").write_text(text.replace("</body>", PROBE))
    # A window of the browser's own is never narrower than 500 pixels; a frame is.
    narrow = frame + "<script>onload = () => document.body.append(frames[0].document.getElementById('probe'))</script>"
    (tmp_path / "narrow.html").write_text(f"<!doctype html><body>{narrow}</body>")
    for name, width in (("copy.html", 1400), ("narrow.html", 380)):
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--hide-scrollbars"]
        options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--enable-logging=stderr"]
        done = subprocess.run(
            [CHROMIUM, *options, "--dump-dom", f"file://{tmp_path / name}"], capture_output=True, text=True, timeout=300
        )
        assert "CONSOLE" not in done.stderr, done.stderr
        found = json.loads(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)[1])
        assert found["width"] == width
        assert found["wide"] == []
        assert found["scroll"] <= width
        assert found["rows"][1:] == [416, 417]
        assert found["sorted"] == [True, True, True]
        assert found["headings"][:2] == ["Where it loses", "NVIDIA H200"]
