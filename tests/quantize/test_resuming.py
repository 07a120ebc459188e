"""What is finished is kept: `quantize_file` goes on from there, and takes nothing that was made of anything else."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import codegemm
from codegemm import Calibration, quantize_file
from codegemm.quantize import parts as parts_of_matrices
from codegemm.quantize import work
from codegemm.quantize.file import Interrupted
from codegemm.quantize.plan import Quantized
from codegemm.quantize.quantizers import CodebookQuantizer

CONFIG = "m1v4b2"


@pytest.fixture
def tensors(rng):
    return {f"{name}.weight": rng.standard_normal((16, 32)).astype(np.float32) for name in "abcd"} | {"n": np.ones(3)}


@pytest.fixture
def parts(tmp_path):
    return tmp_path / ".out.safetensors.parts"


@pytest.fixture
def made(monkeypatch):
    """The matrices that were quantised."""
    seen, quantize = [], work.quantize

    def counting(matrix, *arguments, **named):
        seen.append(np.array(matrix))
        return quantize(matrix, *arguments, **named)

    monkeypatch.setattr(work, "quantize", counting)
    return seen


def interrupted(source, target, matrices, **arguments):
    """A run that is stopped after so many matrices."""
    told = []

    def tell(one):
        told.append(one)
        if sum(isinstance(each, Quantized) for each in told) == matrices:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        quantize_file(source, target, **{"config": CONFIG, **arguments}, on_tensor=tell)
    return caught.value


def test_another_run_goes_on(source, target, parts, made, tensors):
    stop = interrupted(source, target, 2)
    assert (stop.kept, stop.total, stop.folder) == (2, 4, parts)
    assert str(stop) == f"2 of 4 matrices are kept in {parts}; the same call goes on from there"
    assert not target.exists()
    assert len(list(parts.iterdir())) == len(made) == 2
    done = quantize_file(source, target, CONFIG)
    assert done.resumed == 2
    assert [one.name for one in done.quantized] == ["a", "b", "c", "d"]
    assert all((a == tensors[f"{name}.weight"]).all() for a, name in zip(made, "abcd", strict=True))
    assert sorted(target.parent.iterdir()) == [source, target]
    once = target.parent / "once.safetensors"
    quantize_file(source, once, CONFIG)
    assert once.read_bytes() == target.read_bytes()


def test_it_may_be_stopped_again_and_again(source, target, made):
    assert interrupted(source, target, 1).kept == 1
    assert interrupted(source, target, 3).kept == 3
    assert interrupted(source, target, 4).kept == 4
    assert quantize_file(source, target, CONFIG).resumed == 4
    assert len(made) == 4


def test_an_interrupt_before_anything_is_finished_leaves_nothing(source, target, monkeypatch):
    def stopped(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "quantize", stopped)
    target.write_text("before")
    with pytest.raises(KeyboardInterrupt) as caught:
        quantize_file(source, target, CONFIG, force=True)
    assert not isinstance(caught.value, Interrupted)
    assert target.read_text() == "before"
    assert sorted(target.parent.iterdir()) == [source, target]


SEEN = {"a": Calibration.of(np.eye(32), 1)}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"config": "m1v4b3"}),
        ({}, {"rotate": True}),
        ({}, {"seed": 1}),
        ({}, {"time_limit": 1e6}),
        ({"calibration": SEEN}, {}),
        ({"calibration": SEEN}, {"calibration": {"a": Calibration.of(2 * np.eye(32) + 1, 1)}}),
    ],
)
def test_what_other_arguments_made_is_not_taken(first, then, source, target, parts, made, tensors):
    interrupted(source, target, 1, **first)
    done = quantize_file(source, target, **{"config": CONFIG, **then})
    assert done.resumed == 0
    assert len(made) == 5
    assert codegemm.load(target, "a") == codegemm.quantize(tensors["a.weight"], **{"config": CONFIG, **then_of_a(then)})
    assert not parts.exists()


def then_of_a(arguments):
    known = arguments.get("calibration")
    return arguments | ({"calibration": known["a"]} if known else {})


def test_what_another_quantiser_made_is_not_taken(source, target, made, monkeypatch):
    interrupted(source, target, 1)
    monkeypatch.setattr(CodebookQuantizer, "version", "of tomorrow")
    assert quantize_file(source, target, CONFIG).resumed == 0


def test_what_another_backend_made_is_not_taken(source, target, made, monkeypatch):
    interrupted(source, target, 1)
    monkeypatch.setattr(parts_of_matrices, "usual", lambda weights: "cuda")
    assert quantize_file(source, target, CONFIG).resumed == 0


def test_a_matrix_that_changed_is_quantised_again(source, target, tensors):
    interrupted(source, target, 2)
    tensors["a.weight"][3, 5] += 1
    save_file(tensors, source)
    assert quantize_file(source, target, CONFIG).resumed == 1
    for name in "ab":
        assert codegemm.load(target, name) == codegemm.quantize(tensors[f"{name}.weight"], CONFIG)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[1:]])
def test_a_damaged_part_is_made_anew(damage, source, target, parts, tensors):
    interrupted(source, target, 2)
    one = next(parts.iterdir())
    one.write_bytes(damage(one.read_bytes()))
    assert quantize_file(source, target, CONFIG).resumed == 1
    for name in "abcd":
        assert codegemm.load(target, name) == codegemm.quantize(tensors[f"{name}.weight"], CONFIG)


def test_a_failure_keeps_what_is_finished(source, target, made, monkeypatch):
    def full(*arguments):
        raise codegemm.CheckpointError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(work, "write_weights", full)
        with pytest.raises(codegemm.CheckpointError, match="full"):
            quantize_file(source, target, CONFIG)
    assert not target.exists()
    assert quantize_file(source, target, CONFIG).resumed == 4
    assert len(made) == 4


def test_others_files_stay(source, target, parts):
    interrupted(source, target, 1)
    (parts / "notes.txt").write_text("mine")
    (parts / ".0123456789abcdef0123456789abcdef.safetensors.01234567").write_text(
        "half a part, of a run that was killed"
    )
    quantize_file(source, target, CONFIG)
    assert [path.name for path in parts.iterdir()] == ["notes.txt"]
