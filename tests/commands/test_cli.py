"""`codegemm quantize`, `info` and `cache`, run as a user runs them."""

import json
import os
import pty
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import ROOT
from support.processes import begun, python
from support.processes import codegemm as run

import codegemm
from codegemm import calibration


def said(*arguments, **options):
    """What a command prints that succeeds."""
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tensors(tmp_path, monkeypatch, rng):
    """What is in the file in.safetensors, in the folder where commands are run."""
    monkeypatch.chdir(tmp_path)
    tensors = {
        "a.weight": rng.standard_normal((32, 64)).astype(np.float32),
        "a.bias": np.ones(32, np.float32),
        "b.weight": rng.standard_normal((16, 30)).astype(np.float16),
        "norm.weight": np.ones(64, np.float32),
        "other": rng.standard_normal((8, 8)).astype(np.float32),
    }
    save_file(tensors, "in.safetensors", {"note": "kept", "format": "pt"})
    return tensors


QUANTIZE = ("quantize", "in.safetensors", "out.safetensors")


def test_quantize_and_info(tensors):
    told = said(*QUANTIZE, "--config", "m1v4b4g32")
    assert "a.weight: [32, 64] at 2.000 bits/weight" in told
    assert "copied as it is: b.weight: in_features=30: must be a multiple of the vector length v=4" in told
    assert "norm.weight" not in told
    assert "a.bias" not in told
    sizes = (f"{os.path.getsize(f'{name}.safetensors') / 1e6:.1f} MB" for name in ("in", "out"))
    assert told.endswith(f"1 quantised, 1 left as they are, 3 others copied; {' -> '.join(sizes)}\n")
    weight = codegemm.load("out.safetensors")
    assert weight == codegemm.quantize(tensors["a.weight"], "m1v4b4g32")
    stored = load_file("out.safetensors")
    for name in ("a.bias", "b.weight", "norm.weight", "other"):
        assert np.array_equal(stored[name], tensors[name])
    told = said("info", "out.safetensors")
    for text in ("a", "m1v4b4g32", "32 x 64", "2.000", "1 weight,"):
        assert text in told


def test_group_sizes_that_do_not_divide_a_row_are_told(tensors):
    told = "1 of 2 matrices are m1v2b2g6: the group size of m1v2b2g8 does not divide their 30 columns\n"
    assert told in said(*QUANTIZE, "--config", "m1v2b2g8", "--dry-run")
    assert told in said(*QUANTIZE, "--config", "m1v2b2g8")
    assert codegemm.load("out.safetensors", "b") == codegemm.quantize(tensors["b.weight"], "m1v2b2g6")


def test_quantize_by_calibration_and_rotation(tensors):
    seen = codegemm.Calibration(64)
    seen.update(np.random.default_rng(0).standard_normal((100, 64)))
    calibration.save("inputs.safetensors", {"a": seen})
    told = said(*QUANTIZE, "--config", "m1v2b2", "--calibration", "inputs.safetensors", "--rotate")
    assert "b.weight: [16, 30] at" in told
    assert "bits/weight, without calibration: the file has none for it" in told
    found = codegemm.load_all("out.safetensors")["a"]
    assert found == codegemm.quantize(tensors["a.weight"], "m1v2b2", calibration=seen, rotate=True)


def test_quantize_takes_the_formats_names(tensors):
    said(*QUANTIZE, "--config", "m1v4g32+rotated")
    found = codegemm.load("out.safetensors")
    assert found.spec.name == "m1v4g32+rotated"
    assert found == codegemm.quantize(tensors["a.weight"], "m1v4g32+rotated")


def test_include_chooses(tensors):
    said(*QUANTIZE, "--config", "m1v2b2", "--include", "b.*")
    assert list(codegemm.load_all("out.safetensors")) == ["b"]


def test_exclude_subtracts(tensors):
    said(*QUANTIZE, "--config", "m1v2b2", "--exclude", "b.*")
    assert list(codegemm.load_all("out.safetensors")) == ["a"]


def test_embeddings_are_taken_where_they_are_named(tensors):
    save_file(tensors | {"model.embed_tokens.weight": tensors["a.weight"]}, "in.safetensors")
    told = said(*QUANTIZE, "--config", "m1v4b2")
    assert "copied as it is: model.embed_tokens.weight: an embedding; include can name it" in told
    assert list(codegemm.load_all("out.safetensors")) == ["a"]
    said(*QUANTIZE, "--config", "m1v4b2", "--include", ".*embed.*", "--force")
    assert list(codegemm.load_all("out.safetensors")) == ["model.embed_tokens"]


@pytest.mark.parametrize("target", ["in.safetensors", "link", "hard"])
def test_the_source_is_never_replaced(target, tensors, tmp_path):
    os.symlink("in.safetensors", "link")
    os.link("in.safetensors", "hard")
    before = (tmp_path / "in.safetensors").read_bytes()
    for more in ([], ["--force"]):
        done = run("quantize", "in.safetensors", target, "--config", "m1v4b2", *more)
        assert done.returncode == 1
        assert done.stderr == f"codegemm: {target}: would replace in.safetensors, which is read\n"
    assert (tmp_path / "in.safetensors").read_bytes() == before


def test_an_existing_target_is_replaced_by_force(tensors, tmp_path):
    (tmp_path / "out.safetensors").write_text("before")
    done = run(*QUANTIZE, "--config", "m1v4b2")
    assert done.returncode == 1
    assert done.stderr == "codegemm: out.safetensors: exists, and is replaced only by force (--force)\n"
    assert (tmp_path / "out.safetensors").read_text() == "before"
    said(*QUANTIZE, "--config", "m1v4b2", "--force")
    assert list(codegemm.load_all("out.safetensors")) == ["a"]


def test_a_dry_run(tensors, tmp_path):
    calibration.save("inputs.safetensors", {"a": codegemm.Calibration.of(np.eye(64), 1)})
    before = sorted(tmp_path.iterdir())
    told = said(*QUANTIZE, "--config", "m1v2b2", "--calibration", "inputs.safetensors", "--dry-run")
    rows = [line.split() for line in told.splitlines() if ".weight" in line]
    assert rows == [
        ["a.weight", "32", "x", "64", "1.312", "0.01", "0.00", "yes"],
        ["b.weight", "16", "x", "30", "1.800", "0.00", "0.00", "no"],
    ]
    assert told.endswith("out.safetensors: 2 to be quantised, 3 others copied; 0.0 MB -> about 0.0 MB\n")
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def slow(tmp_path, monkeypatch, rng):
    """A file whose second matrix takes about a second, and the configuration for that."""
    monkeypatch.chdir(tmp_path)
    large = rng.standard_normal((384, 384)).astype(np.float32)
    save_file({"a.weight": large[:256, :256], "b.weight": large}, "in.safetensors")
    return [*QUANTIZE, "--config", "m2v8b7g-1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_is_gone_on_with(number, slow, tmp_path):
    with begun(*slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith("a.weight: [256, 256]")
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    parts = tmp_path / ".out.safetensors.parts"
    if number == signal.SIGINT:
        kept = f"1 of 2 matrices are kept in {parts}"
        assert (process.returncode, error) == (130, f"stopped: {kept}; the same command goes on from there\n")
    assert not (tmp_path / "out.safetensors").exists()
    assert len(list(parts.glob("[0-9a-f]*"))) == 1
    assert "2 quantised, 1 of them before, 0 others copied" in said(*slow)
    assert not parts.exists()
    resumed = (tmp_path / "out.safetensors").read_bytes()
    said(*slow, "--force")
    assert (tmp_path / "out.safetensors").read_bytes() == resumed


def test_bars_of_the_file_and_of_the_matrix_on_a_terminal(slow):
    """The first counts all matrices; lines appear above both."""
    ours, theirs = pty.openpty()
    with begun(*slow, stdout=theirs, stderr=theirs, env=os.environ | {"COLUMNS": "80", "TERM": "xterm"}) as process:
        os.close(theirs)
        drawn = b""
        while piece := _read(ours):
            drawn += piece
    os.close(ours)
    assert process.returncode == 0
    erased = re.sub(r"\r|\x1b\[2K", "\n", drawn.decode())
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", erased).split("\n")
    assert any(re.match("2 of 2 matrices +━.* 31%", line) for line in lines)
    assert any(re.match("quantizing to m2v8b7g-1 ━", line) for line in lines)
    assert any(line.startswith("b.weight: [384, 384] at") for line in lines)
    assert max(map(len, lines)) <= 80


def _read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # nobody has its other end any more
        return b""


def test_a_models_folder(tensors, tmp_path):
    (tmp_path / "model").mkdir()
    names = [f"model-{i}.safetensors" for i in (1, 2)]
    save_file({"a.weight": tensors["a.weight"]}, f"model/{names[0]}")
    save_file({"b.weight": tensors["a.weight"][:16]}, f"model/{names[1]}")
    places = {"a.weight": names[0], "b.weight": names[1]}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "pytorch_model.bin").write_text("")
    told = said("quantize", "model", "small", "--config", "m1v4b4")
    assert "not copied: pytorch_model.bin\nsmall: 2 quantised, 0 others copied;" in told
    assert "to load it: codegemm.AutoModelForCausalLM.from_pretrained('small')" in told
    size = sum(os.path.getsize(f"small/{name}") for name in names)
    for path in ("small", "small/model.safetensors.index.json"):
        told = said("info", path)
        assert f"2 weights, 0.0 MB of {size / 1e6:.1f} MB" in told
    assert json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]["config"] == "m1v4b4g-1"
    done = run("info", "model/config.json")
    assert done.stderr.startswith("codegemm: model/config.json: not an index of shards")


def test_names_are_whole(tmp_path, make_weight):
    """However long they are; one that has room is in one line of eighty columns."""
    long, usual = "model." + "layers." * 20 + "end", "model.layers.31.mlp.gate_proj"
    codegemm.save_all(tmp_path / "w", {name: make_weight(16, 64, "m1v4g32+rotated") for name in (long, usual)})
    lines = said("info", tmp_path / "w", env=os.environ | {"COLUMNS": "80"}).splitlines()
    assert lines[1].endswith(f"  {usual}")
    assert re.fullmatch(r"m1v4g32\+rotated +16 x 64 +\d+\.\d+ +0\.00  " + re.escape(long), lines[2])
    assert max(len(lines[i]) for i in (0, 1, 3)) <= 80


def test_info_as_json(tmp_path, make_weight):
    weights = {"a": make_weight(16, 64, "m1v4"), "b": make_weight(32, 128, "m2v8g32")}
    codegemm.save_all(tmp_path / "w", weights)
    assert json.loads(said("info", tmp_path / "w", "--json")) == {
        "weights": [
            {
                "name": name,
                "format": weight.spec.name,
                "shape": list(weight.shape),
                "bits_per_weight": weight.bits_per_weight,
                "bytes": weight.nbytes,
            }
            for name, weight in weights.items()
        ],
        "bytes": sum(weight.nbytes for weight in weights.values()),
        "file_bytes": (tmp_path / "w").stat().st_size,
    }


def test_info_prints_names_as_they_are(tmp_path, make_weight):
    make_weight(16, 64, "m1v4").save(tmp_path / "w.safetensors", "x[/b][red]y")
    assert "x[/b][red]y" in said("info", tmp_path / "w.safetensors")


MATRIX = np.ones((4, 8), np.float32)


@pytest.mark.parametrize(
    ("more", "arguments", "message"),
    [
        ({}, ["--config", "m1v4", "--include", "nothing"], "no matrix matches include 'nothing'"),
        ({}, ["--config", "m1v4", "--include", "("], "include '(': missing )"),
        ({}, ["--config", "x"], "configuration 'x': expected"),
        ({}, ["--config", "m1v4", "--exclude", "("], "exclude '(': missing )"),
        ({}, ["--config", "m1v2b2", "--calibration", "c.safetensors"], "c is none of the matrices of in.safetensors"),
        ({"a": MATRIX}, ["--config", "m1v4b2", "--include", "a|a.weight"], "both a and a.weight match include"),
        ({"format.weight": MATRIX}, ["--config", "m1v4b2"], "name 'format': can't be that of a weight"),
        ({"a.codes": np.ones(3)}, ["--config", "m1v4b2"], "tensor 'a.codes': is part of a weight"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(more, arguments, message, tensors, tmp_path):
    calibration.save("c.safetensors", {"c": codegemm.Calibration.of(np.eye(64), 1)})
    save_file(tensors | more, "in.safetensors")
    done = run(*QUANTIZE, *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out.safetensors").exists()


def test_files_that_are_not_there(tmp_path):
    done = run("info", tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr == f"codegemm: {tmp_path / 'nowhere'}: no such file\n"
    save_file({"a.weight": MATRIX}, tmp_path / "in")
    done = run("quantize", tmp_path / "in", tmp_path / "no folder" / "out", "--config", "m1v4")
    assert "there is no folder" in done.stderr


def test_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path / "cache"))
    assert said("cache", "path").strip() == str(tmp_path / "cache")
    assert said("cache", "clear") == "removed 0 files, 0.0 MB\n"


def completed(tmp_path, kind, **words):
    """What a shell gets from the script that an installation makes."""
    script = tmp_path / "codegemm"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom codegemm.cli import main\nsys.exit(main())\n")
    done = python(str(script), cwd=ROOT, env=os.environ | {"_CODEGEMM_COMPLETE": kind} | words, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("codegemm comp", ["plain,compare"]),
        ("codegemm predict --gpu h", ["plain,h200", "plain,h100"]),
        ("codegemm info mod", ["file,mod"]),
    ],
)
def test_completion(line, found, tmp_path):
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    assert completed(tmp_path, "bash_complete", **words).splitlines() == found


def test_completion_is_set_up_as_help_says(tmp_path):
    told = said("--help", env=os.environ | {"COLUMNS": "80"})
    assert 'eval "$(_CODEGEMM_COMPLETE=bash_source codegemm)"' in told
    for kind in ("bash_source", "zsh_source", "fish_source"):
        assert kind in told
        assert "codegemm" in completed(tmp_path, kind)


def test_help_and_version():
    assert "compare" in said("--help")
    assert said("--version").strip() == f"codegemm, version {codegemm.__version__}"
    assert run("compare", "--nonsense").returncode == 2
