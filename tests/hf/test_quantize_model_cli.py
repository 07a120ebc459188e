"""`codegemm quantize` with texts as --calibration."""

import os
import re
import signal
import subprocess

import click
import pytest
from emulator.cases import ALL
from support.models import loaded, quantised, tiny_llama
from support.processes import begun
from support.whole import CONFIG, REPORT, contents, left_behind, saved

import codegemm
from codegemm.cli import quantize_by_text
from codegemm.hf.blockwise import matrix, runner
from codegemm.hf.blockwise.kept import Kept


@pytest.fixture
def dense(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "dense")
    return saved(tiny_llama(1), tmp_path / "dense")


@pytest.fixture
def texts(tmp_path):
    """Two files."""
    for name, step in (("a.txt", 3), ("b.txt", 7)):
        (tmp_path / name).write_text(" ".join(f"a{number * step % 50}" for number in range(200)))
    return tmp_path / "a.txt", tmp_path / "b.txt"


@pytest.fixture
def quantize(invoke, dense, tmp_path, texts):
    def run(*more):
        usual = ("--config", CONFIG, "--length", 16, "--workers", 1, "--time-limit", 0)
        return invoke("quantize", dense, tmp_path / "out", *usual, *more, "--calibration", *texts)

    return run


def test_a_model(quantize, dense, tmp_path, texts):
    """As the function makes it."""
    done = quantize("--tokens", 300, "--layer", "*.v_proj=m2v4b3g16", "--dense", "o_proj", "--seed", 3, "--tune", 1,
                    "--distill", 100)  # fmt: skip
    assert done.exit_code == 0
    name = re.escape("model.layers.0.self_attn.q_proj")
    assert re.search(rf"^{name}: \[32, 32\] at 2\.\d+ bits/weight, error of outputs 0\.\d+$", done.output, re.M)
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert re.search(rf"out: 6 matrices quantised, \d\.\d+ bits/weight; 0\.. MB -> {size / 1e6:.1f} MB", done.output)
    assert f"to load it: codegemm.AutoModelForCausalLM.from_pretrained('{tmp_path / 'out'}')" in done.output
    codegemm.quantize_model(
        dense, tmp_path / "function", CONFIG, calibration=texts, tokens=300, length=16, workers=1, time_limit=0,
        layers={"*.v_proj": "m2v4b3g16"}, modules_to_not_convert=["o_proj"], seed=3, tune=1, distill=100,
    )  # fmt: skip
    assert contents(tmp_path / "out") == contents(tmp_path / "function")
    assert contents(tmp_path / "out")[REPORT]["texts"] == ["a.txt", "b.txt"]
    assert "for 288 tokens of a.txt, b.txt" in (tmp_path / "out" / "README.md").read_text()
    assert len(quantised(loaded(tmp_path / "out"))) == 6


def test_rotated(quantize, tmp_path):
    assert quantize("--rotate").exit_code == 0
    assert {each.config for each in quantised(loaded(tmp_path / "out")).values()} == {f"{CONFIG}+rotated"}


def test_a_dry_run(quantize, dense, tmp_path, texts, monkeypatch):
    """Computes and writes nothing; the bytes that it names are those, but for what a file says of its tensors."""

    def never(*arguments):
        raise AssertionError

    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(matrix.Work, "done", never)
        done = quantize("--dry-run")
    assert done.exit_code == 0
    assert re.search(
        r"out: 7 matrices to be quantised, \d\.\d+ bits/weight; 0\.\d MB -> about 0\.\d MB\n"
        r"hidden states take 0\.\d MB, a block 0\.\d MB", done.output
    )  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before
    planned = codegemm.quantize_model(dense, tmp_path / "out", CONFIG, calibration=texts, length=16, dry_run=True)
    assert planned.state_bytes == 2 * 4 * 32 * planned.tokens
    assert planned.block_bytes == 2 * 4 * sum(each.numel() for each in tiny_llama(1).model.layers.parameters())
    quantize()
    said = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert abs(planned.target_bytes - said) < 4096


def test_ctrl_c(quantize, tmp_path, monkeypatch):
    """A second run says how much there was."""
    keep, kept = Kept.keep, []

    def stop(self, *told):
        keep(self, *told)
        kept.append(told)
        if len(kept) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Kept, "keep", stop)
        done = quantize()
    assert done.exit_code == 130
    assert "stopped: the same command goes on from what is finished" in done.output
    assert left_behind(tmp_path / "out") == [".out.parts"]
    done = quantize()
    assert done.exit_code == 0
    assert "7 matrices quantised, 4 of them before, " in done.output
    assert left_behind(tmp_path / "out") == []


@pytest.mark.skipif(not ALL, reason="starts two processes")
@pytest.mark.parametrize("everybody", [True, False])
def test_ctrl_c_of_workers(everybody, dense, tmp_path, texts):
    """One line, whoever is told: a terminal tells all of them."""
    saved(tiny_llama(3), dense)
    arguments = ("quantize", dense, tmp_path / "out", "--config", "m1v4b5g16", "--length", "16", "--workers", "2")
    running = begun(
        *arguments, "--calibration", *texts, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert "q_proj" in running.stdout.readline()
    (os.killpg if everybody else os.kill)(running.pid, signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert told == "stopped: the same command goes on from what is finished\n"
    assert running.returncode == 130


def test_usage(quantize, invoke, dense, tmp_path, texts):
    with pytest.raises(click.UsageError, match="--layer v_proj: must be NAME=CONFIG"):
        quantize("--layer", "v_proj")
    for text in ("=m1v4", "v_proj="):
        with pytest.raises(click.UsageError, match="must be NAME=CONFIG"):
            quantize("--layer", text)
    with pytest.raises(click.UsageError, match=r"--include, --exclude: with texts as --calibration"):
        quantize("--include", ".*")
    with pytest.raises(click.BadParameter, match="0 is not in the range"):
        quantize("--workers", 0)
    for option in (["--tokens", 100], ["--layer", "a=b"], ["--tune", 3], ["--spill"], ["--device", "cpu"]):
        with pytest.raises(click.UsageError, match=f"{option[0]}: is for texts as --calibration"):
            invoke("quantize", dense, tmp_path / "out", "--config", CONFIG, *option)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="out: exists"):
        quantize()


def test_defaults_are_the_functions():
    assert (quantize_by_text._TOKENS, quantize_by_text._LENGTH) == (runner.TOKENS, runner.LENGTH)
