"""`codegemm.quantize_model` goes on from what is finished, whenever it was stopped, and takes nothing else."""

import errno
import json
import os
import textwrap
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import loaded, tiny_llama
from support.processes import python, with_tests
from support.whole import BEGIN, CONFIG, contents, left_behind, rows, saved

import codegemm
from codegemm import files
from codegemm.hf.blockwise import matrix
from codegemm.hf.blockwise.run import Run
from codegemm.hf.blockwise.streams import Streams


@pytest.fixture
def dense(tmp_path):
    return saved(tiny_llama(), tmp_path / "dense")


@pytest.fixture
def made(monkeypatch):
    """The names of the matrices that were quantised."""
    names, done = [], matrix.Work.done

    def counting(work):
        names.append(work.name)
        return done(work)

    monkeypatch.setattr(matrix.Work, "done", counting)
    return names


def quantised(folder, target, **arguments):
    usual = {"config": CONFIG, "calibration": rows(), "workers": 1, "time_limit": 0}
    return codegemm.quantize_model(folder, target, **usual | arguments)


def stop_after(count):
    """What hears of layers, and presses Ctrl-C after so many."""
    left = [count]

    def hear(layer):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return hear


def test_another_run_goes_on(dense, tmp_path, made):
    for count, total in ((2, 3), (4, 4), (9, 10)):  # those of a stage are heard of together
        with pytest.raises(KeyboardInterrupt):
            quantised(dense, tmp_path / "out", on_layer=stop_after(count))
        assert len(made) == total
    assert not (tmp_path / "out").exists()
    assert left_behind(tmp_path / "out") == [".out.parts"]
    heard = []
    done = quantised(dense, tmp_path / "out", on_layer=heard.append)
    assert done.resumed == 10
    assert list(done.layers) == heard
    assert len(made) == len(set(made)) == len(heard) == 14
    assert left_behind(tmp_path / "out") == []
    quantised(dense, tmp_path / "once")
    assert contents(tmp_path / "once") == contents(tmp_path / "out")


@pytest.mark.parametrize("tune", [0, 2])
def test_the_text_is_left_out_where_all_is_finished(tune, dense, tmp_path, made, monkeypatch):
    """As before what is trained after all blocks: the same layers, and the same files."""
    first = quantised(dense, tmp_path / "out", keep=True, tune=tune)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(Streams, "begin", Mock(side_effect=AssertionError("read again")))
    again = quantised(dense, tmp_path / "out", keep=True, tune=tune, force=True)
    assert again.layers == first.layers
    assert (first.resumed, again.resumed, len(made)) == (0, 14, 14)
    assert contents(tmp_path / "out") == before
    with pytest.raises(AssertionError, match="read again"):
        quantised(dense, tmp_path / "out", tune=tune + 1, force=True)


def changed_embedding(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][3, 5] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def changed_config(folder):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "rms_norm_eps": 0.1}))


def changed_norm(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"][5] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"config": "m1v4b3g-1"},
        {"layers": {"*.0.self_attn.k_proj": "m2v4b3g16"}},
        {"calibration": rows(8)},
        {"calibration": None},
        {"time_limit": 1e6},
        {"tune": 1},
        changed_embedding,
        changed_config,
        changed_norm,
    ],
)
def test_what_was_made_of_anything_else_is_not_taken(change, dense, tmp_path, made):
    with pytest.raises(KeyboardInterrupt):
        quantised(dense, tmp_path / "out", on_layer=stop_after(1))
    first = len(made)
    if callable(change):
        change(dense)
        change = {}
    with pytest.raises(KeyboardInterrupt):
        quantised(dense, tmp_path / "out", **change, on_layer=stop_after(1))
    assert {*made[:first]} <= {*made[first:]}


def test_blocks_before_one_that_changed_are_taken(dense, tmp_path, made):
    with pytest.raises(KeyboardInterrupt):
        quantised(dense, tmp_path / "out", on_layer=stop_after(9))
    tensors = load_file(dense / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    assert quantised(dense, tmp_path / "out").resumed == 7  # of ten


def test_a_part_that_is_damaged_is_made_anew(dense, tmp_path, made):
    with pytest.raises(KeyboardInterrupt):
        quantised(dense, tmp_path / "out", on_layer=stop_after(3))
    for number, part in enumerate(sorted((tmp_path / ".out.parts").iterdir())[:2]):
        data = part.read_bytes()
        part.write_bytes(data[: len(data) // 2] if number else b"")
    assert quantised(dense, tmp_path / "out").resumed == 1
    loaded(tmp_path / "out")


@pytest.mark.parametrize("writes", [2, 9, 15])
def test_a_full_disk(writes, dense, tmp_path, monkeypatch):
    """Of a matrix, and of the whole: what was at the target is still there, and the same call goes on."""
    saved(tiny_llama(1), tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    left, sync = [writes], os.fsync

    def full(number):
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(codegemm.CheckpointError, match="could not be written: No space left on device"):
            quantised(dense, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert quantised(dense, tmp_path / "out", force=True).resumed == min(writes - 1, 14)
    assert left_behind(tmp_path / "out") == []
    loaded(tmp_path / "out")


def test_states_on_disk(dense, tmp_path, monkeypatch):
    """Nobody sees them; they change nothing. A disk without room for them is named."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(codegemm.CheckpointError, match="no room for the calibration's hidden states: No space"):
            quantised(dense, tmp_path / "out", spill=True)
    with pytest.raises(KeyboardInterrupt):
        quantised(dense, tmp_path / "out", spill=True, on_layer=stop_after(3))
    assert left_behind(tmp_path / "out") == [".out.parts"]
    assert quantised(dense, tmp_path / "out", spill=True).resumed == 3
    assert left_behind(tmp_path / "out") == []
    quantised(dense, tmp_path / "in memory")
    assert contents(tmp_path / "in memory") == contents(tmp_path / "out")


def test_tuned_weights_of_a_block_are_taken_all_or_none(dense, tmp_path, monkeypatch):
    """Stopped between them, a block is trained from where it began."""
    keep, left = Run._tune, [1]

    def stopped(run, *arguments):
        kept, own = [3], run.kept.keep

        def counting(*told):
            own(*told)
            kept[0] -= 1
            if not kept[0] and left.pop():
                raise KeyboardInterrupt

        run.kept.keep = counting
        keep(run, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_tune", stopped)
        with pytest.raises(KeyboardInterrupt):
            quantised(dense, tmp_path / "out", tune=3)
    assert quantised(dense, tmp_path / "out", tune=3).resumed == 7
    quantised(dense, tmp_path / "once", tune=3)
    assert contents(tmp_path / "once") == contents(tmp_path / "out")


KILLED = """
    from codegemm import destination, files
    from codegemm.hf.blockwise.kept import Kept
    from codegemm.hf.distillation import train
    from codegemm.hf.distillation.train import Lessons

    def killing(owner, name, number):
        '''What kills this process at the call of that number.'''
        left, usual = [number], getattr(owner, name)

        def counting(*arguments):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return usual(*arguments)

        setattr(owner, name, counting)

    train._SECONDS = 0  # between states that are kept
    points = [(Kept, "keep", 3), (files.os, "fsync", 8), (train, "_keep", 4), (destination, "_exchange", 1)]
    for owner, name, number in points:
        child = os.fork()
        if child == 0:
            killing(owner, name, number)
            codegemm.quantize_model(sys.argv[1], sys.argv[2], CONFIG, calibration=rows(), workers=1, time_limit=0,
                tune=2, distill=Lessons(256, 16, rows=2), force=True)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (owner, name, status)
        assert os.path.getsize(sys.argv[2] + "/mine") == 3
"""


def test_killed_again_and_again(tmp_path, made):
    """Between matrices and while one is written, between steps of distillation, and before the last moment."""
    from codegemm.hf.distillation.train import Lessons

    dense = saved(tiny_llama(1), tmp_path / "dense")
    (dense / "mine").write_text("copied")
    saved(tiny_llama(1), tmp_path / "out")
    (tmp_path / "out" / "mine").write_text("old")
    script = BEGIN + textwrap.dedent(KILLED)
    done = python("-W", "ignore", "-c", script, dense, tmp_path / "out", env=with_tests(), timeout=120)
    assert not done.returncode, done.stderr
    assert list((tmp_path / ".out.parts").glob("*.state"))
    arguments = {"tune": 2, "distill": Lessons(256, 16, rows=2)}
    assert quantised(dense, tmp_path / "out", **arguments, force=True).resumed == 7
    assert not made
    assert left_behind(tmp_path / "out") == []
    quantised(dense, tmp_path / "once", **arguments)
    assert contents(tmp_path / "once") == contents(tmp_path / "out")
    assert torch.isfinite(loaded(tmp_path / "out")(rows()).logits).all()
