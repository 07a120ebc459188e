"""`make torch`: what it computes of rounds, and that all of it runs."""

import json
import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.pytorch import __main__ as made
from benchmarks.pytorch import calls, decode, rounds
from codegemm.engines.cpu import device


def test_calls_take_turns():
    taken = []
    seconds = rounds.run({name: lambda name=name: taken.append(name) for name in "ab"}, 3, 2)
    assert "".join(taken) == "ab" + "aaabbb" + "bbbaaa" + "aaabbb"
    assert {name: len(its) for name, its in seconds.items()} == {"a": 3, "b": 3}
    assert all(each > 0 for its in seconds.values() for each in its)
    assert rounds.quartiles([1.0, 2, 3, 4, 9]) == (2, 3, 4)


def measured(layers, over):
    """With a plan of 10 us, a layer of so much more."""
    called = {mode: {calls.PLAN: [1e-5], calls.LAYER: [1e-5 + over]} for mode in calls.MODES}
    return made.Measured(None, "avx2", called, layers, layers)


def test_times_are_those_of_torchs_faster():
    seconds = {decode.FLOAT32: [9.0, 8.0, 9.0], decode.BFLOAT16: [4.0, 6.0, 5.0], "m1v4g128": [2.0, 2.0, 2.5]}
    assert made.times_torch(seconds)["m1v4g128"] == [2, 3, 2]
    seconds[decode.FLOAT32] = [1.0, 1.0, 1.0]
    assert made.times_torch(seconds)["m1v4g128"] == [0.5, 0.5, 0.4]


@pytest.mark.parametrize(("over", "layer", "met"), [(20e-6, 2.0, True), (30e-6, 2.1, False)])
def test_targets(over, layer, met):
    layers = {decode.FLOAT32: [9.0], decode.BFLOAT16: [4.0], "m1v4g128": [layer], "m2v8g128": [layer]}
    outcomes = measured(layers, over).outcomes()
    assert len(outcomes) == 3
    assert all(outcome.is_met is met for outcome in outcomes)


def test_all_of_it_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(device, "measure_bandwidth", lambda: 1e10)
    assert made.main(["--quick", "--json", str(tmp_path / "torch.json")]) == 0
    said = capsys.readouterr().out
    for name in (calls.PLAN, calls.LAYER, calls.OPERATION, calls.EMPTY, calls.DENSE, decode.FLOAT32, *decode.CONFIGS):
        assert re.search(rf"^ *{re.escape(name)} .* \d", said, re.MULTILINE), name
    assert max(map(len, said.splitlines()[4:])) <= 100
    told = json.loads((tmp_path / "torch.json").read_text())
    assert told["tokens"]["m1v4g128"]["layers_ms"] > 0
    assert set(told["us_beside_the_plan"]) == set(calls.MODES)
    with pytest.raises(SystemExit):
        made.main(["--json", str(tmp_path / "nowhere" / "torch.json")])
