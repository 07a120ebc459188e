"""The task of lm-eval's that needs no network: its questions, and what starts lm-eval."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.models.lm_eval import __main__ as asked
from benchmarks.models.lm_eval.questions import CHOICES, questions, topics

TEXTS = {
    "a": "It is one long sentence. It is another long one.\n\n" * 9,  # an even topic
    "b": "\n\n".join(f"Number {n} is\nthe first here. Then {n} comes with it.  So be it." for n in range(5)) + "\n\n"
    "   If this were code. It would not be asked.\n\n* This is a list. It is none of it either.",
}  # fmt: skip


def test_questions():
    """Whole sentences of prose, by their topic alone."""
    found = questions(TEXTS)
    assert [each.topic for each in found] == ["b"] * 5
    for number, each in enumerate(found):
        assert each.beginning == f"Number {number} is the first here."
        assert each.sentences[each.right] == f" Then {number} comes with it."
        assert len(set(each.sentences)) == CHOICES
        assert all(sentence.startswith(" Then ") for sentence in each.sentences)
    assert found == questions(dict(reversed(TEXTS.items())))


def test_questions_of_python():
    found = questions(topics)
    assert len(found) > 100
    places = [each.right for each in found]
    assert all(places.count(place) > len(found) / 8 for place in range(CHOICES))


def test_the_task_names_what_is_there():
    task = (Path(asked.__file__).parent / f"{asked.TASK}.yaml").read_text()
    assert f"task: {asked.TASK}\n" in task
    assert "!function questions.dataset" in task
    for name in ("beginning", "sentences", "right"):
        assert f"{{{{{name}}}}}" in task


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "nowhere: has no config.json"), (["MODEL", "--limit", "0"], "--limit 0: must be at least 1"),
     (["MODEL", "--json", "/nowhere/a"], "there is no folder /nowhere")],
)  # fmt: skip
def test_what_can_not_be(arguments, message, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        asked.main([str(tmp_path) if each == "MODEL" else each for each in arguments])
    assert message in capsys.readouterr().err


def test_starting_lm_eval(monkeypatch):
    """Its own command line, and a sentence where it is missing."""
    pytest.importorskip("transformers")
    from codegemm.hf import lm_eval

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit, match=r"lm-eval can't be imported .*: pip install lm-eval"):
        lm_eval.main()
    called, package, inner = [], ModuleType("lm_eval"), ModuleType("lm_eval.__main__")
    inner.cli_evaluate = lambda: called.append(True)
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", inner)
    lm_eval.main()
    assert called == [True]
