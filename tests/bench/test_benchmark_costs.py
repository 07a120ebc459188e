"""The measurement of what pieces of the CPU kernels' work take."""

import json

import pytest

from benchmarks.cpu import costs as bench
from benchmarks.cpu.costs import Timed, solve
from codegemm.engines.cpu import costs, device, isa
from codegemm.engines.cpu.costs import Work


def test_pieces_are_solved_for(rng):
    """From their sums, what takes no time apart; a piece that noise makes negative takes none."""
    truth = {"product": 5000.0, "lookup": 0.13, "entry": 0.4}
    timed = []
    for i in range(12):
        counts = {piece: float(rng.integers(1, 1000)) * 5000 / cost for piece, cost in truth.items()}
        seconds = 1e-9 * sum(count * truth[piece] for piece, count in counts.items())
        timed.append(Timed(str(i), Work("a", counts), seconds))
    solved = solve([*timed, Timed("other", Work("b", {"product": 2}), 4e-6)])
    assert solved["a"] == pytest.approx(truth, rel=5e-3)
    assert solved["b"] == {"product": 2000.0}

    # The second piece would have to take -1 ns.
    timed = [Timed("", Work("c", {"x": 1, "y": 0}), 2e-9), Timed("", Work("c", {"x": 1, "y": 1}), 1e-9)]
    found = solve(timed)["c"]
    assert found["y"] == 0
    assert 1 < found["x"] < 2


def test_of_several_rounds_the_quickest_counts(monkeypatch):
    rounds = iter([(3e-6, 5e-6), (4e-6, 2e-6), (9e-6, 9e-6)])

    def products(*asked):
        return [Timed(str(i), Work("a", {}), seconds) for i, seconds in enumerate(next(rounds))]

    monkeypatch.setattr(bench, "_products", products)
    assert [each.seconds for each in bench._quickest([("kernel", (1, 1), "m1v4")], [1], 0)] == [3e-6, 2e-6]


def test_they_are_measured_and_written_when_asked(tmp_path, monkeypatch, capsys):
    """Those of other instructions stay."""
    file = tmp_path / "costs.json"
    other = {"processor": "another", "nanoseconds": {"psumbook": {"product": 1.0}}}
    file.write_text(json.dumps({"plain": other}))
    monkeypatch.setattr(costs, "FILE", file)
    monkeypatch.setattr(bench, "SMALL", ((64, 256), (256, 128)))
    monkeypatch.setattr(bench, "_MOST_COPIES", 1)
    monkeypatch.setattr(bench, "BATCHES", (1, 4, 16))
    monkeypatch.setattr(bench, "_ROUNDS", 1)
    costs.table.cache_clear()
    try:
        assert bench.main(["--quick"]) == 0
        assert json.loads(file.read_text()).keys() == {"plain"}
        assert bench.main(["--quick", "--write"]) == 0
        written = json.loads(file.read_text())
    finally:
        monkeypatch.undo()
        costs.table.cache_clear()
    here = isa.chosen().name
    assert written.keys() == {"plain", here}
    if here != "plain":
        assert written["plain"] == other
    assert written[here]["processor"] == device.name()
    found = written[here]["nanoseconds"]
    assert {"psumbook", "psumbook_words", "dequant", "dequant_panels", "around", "lutgemm"} <= found.keys()
    assert costs.table().get(here, {}).keys() <= found.keys()  # what the last one wrote, this one does
    assert all(cost >= 0 for pieces in found.values() for cost in pieces.values())
    out = capsys.readouterr().out
    assert "psumbook 64 x 256 m1v4g128 N = 1 " in out
    assert f"written to {file}" in out
