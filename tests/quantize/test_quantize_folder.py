"""`quantize_file` of a model's folder: its shards, their index, the other files, and what is never replaced."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import codegemm
from codegemm import Calibration, calibration, destination, quantize_file
from codegemm.files import File
from codegemm.model_card import with_note
from codegemm.quantize import work
from codegemm.quantize.file import Interrupted

CONFIG = "m1v4b2"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LEFT_OUT = ("2_Dense/model.safetensors", "consolidated.00.pth", "pytorch_model.bin", "pytorch_model.bin.index.json")
COPIED = ("1_Pooling/config.json", "config.json", "tokenizer.model")


@pytest.fixture
def tensors(rng):
    """By shard."""
    one = {f"model.layers.{i}.q_proj.weight": rng.standard_normal((16, 32)).astype(np.float32) for i in range(2)}
    two = {"model.layers.2.q_proj.weight": rng.standard_normal((8, 32)).astype(np.float16), "norm.weight": np.ones(32)}
    return {SHARDS[0]: one | {"model.embed_tokens.weight": np.ones((64, 32), np.float32)}, SHARDS[1]: two}


@pytest.fixture
def model(tensors, tmp_path):
    folder = tmp_path / "model"
    for name in (*LEFT_OUT, *COPIED, ".cache/note", ".gitattributes"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for shard, held in tensors.items():
        save_file(held, folder / shard, {"format": "pt"})
    places = {name: shard for shard, held in tensors.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 5, "note": "kept"}, "weight_map": places}))
    return folder


@pytest.fixture
def target(tmp_path):
    return tmp_path / "small"


def contents(folder):
    """Of all files by their path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("named", ["", INDEX])
def test_a_sharded_model_becomes_one(named, model, target, tensors):
    before = contents(model)
    done = quantize_file(model / named, target, CONFIG)
    assert contents(model) == before
    assert sorted(contents(target)) == sorted([*SHARDS, INDEX, *COPIED])
    assert all((target / name).read_text() == f"content of {name}" for name in COPIED if name != "config.json")
    config = json.loads((target / "config.json").read_text())
    said = {"quant_method": "codegemm", "version": 1, "config": "m1v4b2g-1", "layers": {}}
    assert config == {
        "model_type": "llama",
        "quantization_config": {**said, "modules_to_not_convert": ["model.embed_tokens"]},
    }
    assert done.left_out == LEFT_OUT
    assert sorted(os.listdir(target.parent)) == ["model", "small"]

    index, held = json.loads((target / INDEX).read_text()), {name: File(target / name).tensors for name in SHARDS}
    assert index["weight_map"] == {name: shard for shard, its in held.items() for name in its}
    total = sum(one.nbytes for its in held.values() for one in its.values())
    assert index["metadata"] == {"total_size": total, "note": "kept"}
    assert (done.source_bytes, done.target_bytes) == tuple(
        sum((folder / name).stat().st_size for name in SHARDS) for folder in (model, target)
    )

    expected = {
        name.removesuffix(".weight"): codegemm.quantize(matrix, CONFIG)
        for its in tensors.values()
        for name, matrix in its.items()
        if "q_proj" in name
    }
    assert {one.name for one in done.quantized} == expected.keys()
    assert codegemm.load_all(target) == codegemm.load_all(target / INDEX) == expected
    assert list(codegemm.load_all(target)) == sorted(expected)
    name = "model.layers.2.q_proj"
    assert codegemm.load(target, name) == codegemm.load(target / SHARDS[1], name) == expected[name]
    with pytest.raises(codegemm.CheckpointError, match=r"small: no weight 'q'; it has model\.layers\.0"):
        codegemm.load(target, "q")
    assert np.array_equal(load_file(target / SHARDS[1])["norm.weight"], np.ones(32))
    assert "model.embed_tokens.weight" in held[SHARDS[0]]


def test_a_folder_with_a_single_file(model, target, tensors):
    folder = model.parent / "single"
    folder.mkdir()
    save_file(tensors[SHARDS[1]], folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    quantize_file(folder, target, CONFIG)
    assert sorted(contents(target)) == ["config.json", "model.safetensors"]
    assert codegemm.load(target) == codegemm.load(target / "model.safetensors")


def test_a_calibration_of_the_whole_model(model, target, tensors):
    seen = {f"model.layers.{i}.q_proj": Calibration.of(np.diag(np.arange(32.0) + i), 1) for i in (0, 2)}
    seen["model.embed_tokens"] = Calibration.of(np.eye(32), 1)
    calibration.save(model.parent / "inputs.safetensors", seen)
    done = quantize_file(model, target, CONFIG, calibration=model.parent / "inputs.safetensors")
    assert {one.name: one.calibrated for one in done.quantized} == {
        f"model.layers.{i}.q_proj": i != 1 for i in range(3)
    }
    found = codegemm.load_all(target)
    for shard, i in ((SHARDS[0], 0), (SHARDS[0], 1), (SHARDS[1], 2)):
        name = f"model.layers.{i}.q_proj"
        assert found[name] == codegemm.quantize(tensors[shard][f"{name}.weight"], CONFIG, calibration=seen.get(name))
    with pytest.raises(ValueError, match="calibration: other is none of the matrices of"):
        quantize_file(model, model.parent / "2", CONFIG, calibration={"other": seen["model.embed_tokens"]})


def test_calibrations_are_read_when_their_turn_comes(model, target, monkeypatch):
    """One whose numbers can't be is found then, and what was finished before is kept."""
    seen = {f"model.layers.{i}.q_proj": Calibration.of(np.eye(32), 1) for i in range(3)}
    path = model.parent / "inputs.safetensors"
    calibration.save(path, seen)
    good = path.read_bytes()
    held = load_file(path)
    held["model.layers.2.q_proj.gram"][3, 3] = np.nan
    save_file(held, path, File(path).metadata)
    with pytest.raises(codegemm.CheckpointError, match=r"inputs.safetensors: model\.layers\.2\.q_proj: H: nan"):
        quantize_file(model, target, CONFIG, calibration=path)
    path.write_bytes(good)
    assert quantize_file(model, target, CONFIG, calibration=path).resumed == 2


def test_names_are_of_the_whole_model(model, target, tensors):
    tensors[SHARDS[1]]["model.layers.0.q_proj"] = np.ones((8, 32), np.float32)
    rewrite(model, tensors)
    with pytest.raises(ValueError, match=r"both model\.layers\.0\.q_proj and model\.layers\.0\.q_proj\.weight match"):
        quantize_file(model, target, CONFIG, include=".*q_proj.*")
    del tensors[SHARDS[1]]["model.layers.0.q_proj"]
    tensors[SHARDS[1]]["model.layers.0.q_proj.codes"] = np.ones(3)
    rewrite(model, tensors)
    with pytest.raises(ValueError, match=r"tensor 'model\.layers\.0\.q_proj\.codes': is part of a weight"):
        quantize_file(model, target, CONFIG)


def rewrite(model, tensors, **places):
    """The shards with these tensors; places: of some of them, others than there are."""
    for shard, held in tensors.items():
        save_file(held, model / shard)
    found = {name: shard for shard, held in tensors.items() for name in held} | places
    index = {"weight_map": {name: shard for name, shard in found.items() if shard}}
    (model / INDEX).write_text(json.dumps(index))


def test_another_run_goes_on_across_shards(model, target, monkeypatch):
    made, quantize = [], work.quantize

    def stopping(*arguments, **named):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return quantize(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(work, "quantize", stopping)
        with pytest.raises(Interrupted, match=r"2 of 3 matrices are kept in .*/\.small\.parts;"):
            quantize_file(model, target, CONFIG)
    assert not target.exists()
    assert quantize_file(model, target, CONFIG).resumed == 2
    assert sorted(os.listdir(target.parent)) == ["model", "small"]
    quantize_file(model, model.parent / "once", CONFIG)
    assert contents(target) == contents(model.parent / "once")


@pytest.mark.parametrize("replaces", [False, True])
def test_a_folder_appears_whole_or_not_at_all(replaces, model, target, monkeypatch):
    if replaces:
        quantize_file(model, target, "m1v4b3")
    before = contents(target)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for broken in (destination.shutil, "copyfile"), (destination, "write_index"), (destination.os, "rename"):
        module, name = broken
        with monkeypatch.context() as patched:
            patched.setattr(module, name, full)
            with pytest.raises(codegemm.CheckpointError, match="small: could not be written: No space left"):
                quantize_file(model, target, CONFIG, force=True)
        assert contents(target) == before
    assert quantize_file(model, target, CONFIG, force=True).resumed == 3
    assert sorted(os.listdir(target.parent)) == ["model", "small"]


def test_what_was_there_comes_back_where_the_new_folder_can_not(model, target, monkeypatch):
    quantize_file(model, target, "m1v4b3")
    before, rename = contents(target), os.rename

    def only_away(source, to):
        if os.path.basename(source) == "new":
            raise OSError(1, "Operation not permitted")
        rename(source, to)

    monkeypatch.setattr(destination.os, "rename", only_away)
    with pytest.raises(codegemm.CheckpointError, match="not permitted"):
        quantize_file(model, target, CONFIG, force=True)
    assert contents(target) == before


def test_what_was_there_comes_back_where_a_process_was_killed_between_renames(model, target, monkeypatch):
    """Before anything else is done, which may fail."""
    quantize_file(model, target, "m1v4b3")
    before, work = contents(target), target.parent / f".{target.name}.parts" / "whole"
    work.mkdir(parents=True)
    os.rename(target, work / "old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(destination.shutil, "copyfile", full)
        with pytest.raises(codegemm.CheckpointError, match="small: could not be written: No space left"):
            quantize_file(model, target, CONFIG)
    assert contents(target) == before
    quantize_file(model, target, CONFIG, force=True)
    assert sorted(os.listdir(target.parent)) == ["model", "small"]


BROKEN = {
    "no such shard": (lambda folder: (folder / SHARDS[1]).unlink(), "names model-00002-of-00002.safetensors, which is"),
    "half a shard": (
        lambda folder: (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes()[:-1]),
        "00002-of-00002.safetensors: not a whole safetensors file",
    ),
    "not JSON": (lambda folder: (folder / INDEX).write_text("{"), "not an index of shards"),
    "a list": (lambda folder: (folder / INDEX).write_text("[]"), "not an index of shards"),
    "no map": (lambda folder: (folder / INDEX).write_text("{}"), "not an index of shards"),
    "an empty map": (lambda folder: (folder / INDEX).write_text('{"weight_map": {}}'), "not an index of shards"),
    "no index": (lambda folder: (folder / INDEX).unlink(), "holds neither model.safetensors nor model.safetensors"),
    "both": (lambda folder: shutil.copy(folder / SHARDS[0], folder / "model.safetensors"), "holds both"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_folders_are_refused_first(kind, model, target, monkeypatch):
    monkeypatch.setattr(work, "quantize", None)
    spoil, message = BROKEN[kind]
    spoil(model)
    for read in (lambda: quantize_file(model, target, CONFIG), lambda: codegemm.load_all(model)):
        with pytest.raises(codegemm.CheckpointError, match=message):
            read()
    assert not target.exists()


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"gone.weight": SHARDS[0]}, "says that gone.weight is in model-00001-of-00002.safetensors, which lacks it"),
        ({"norm.weight": SHARDS[0]}, "says that norm.weight is in model-00001-of-00002.safetensors, which lacks it"),
        ({"norm.weight": None}, "model-00002-of-00002.safetensors holds norm.weight, the index says nowhere"),
        ({"x": "../model.safetensors"}, r"shard '\.\./model\.safetensors': must be the name of a file in the index's"),
        ({"x": "/etc/passwd"}, "shard '/etc/passwd': must be the name of a file"),
        ({"x": ".."}, r"shard '\.\.': must be the name of a file"),
        ({"x": 3}, "shard 3: must be the name of a file"),
        ({"x": "a\nb"}, r"shard 'a\\nb': must be the name of a file"),
        ({"x": "ä" * 300}, "names ä*, which is not there"),
    ],
)
def test_an_index_that_contradicts_its_shards(places, message, model, target, tensors, monkeypatch):
    monkeypatch.setattr(work, "quantize", None)
    rewrite(model, tensors, **places)
    with pytest.raises(codegemm.CheckpointError, match=message):
        quantize_file(model, target, CONFIG)
    assert not target.exists()


def test_a_tensor_in_two_shards(model, target, tensors):
    rewrite(model, {shard: held | {"twice": np.ones(2)} for shard, held in tensors.items()})
    with pytest.raises(codegemm.CheckpointError, match=f"{SHARDS[0]} holds twice, the index says {SHARDS[1]}"):
        quantize_file(model, target, CONFIG)


def test_what_is_read_is_never_replaced(model, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "quantize", None)
    before = contents(tmp_path)
    (tmp_path / "link").symlink_to(model)
    for target in (model, tmp_path / "link", model / ".." / "model", tmp_path):
        with pytest.raises(codegemm.CheckpointError, match=r"would replace .*model, which is read"):
            quantize_file(model, target, CONFIG, force=True)
        with pytest.raises(codegemm.CheckpointError, match=r"would replace .*model, which is read"):
            quantize_file(model / INDEX, target, CONFIG, force=True)
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(model / SHARDS[0], other / SHARDS[0])
    (model / SHARDS[0]).symlink_to(other / SHARDS[0])
    with pytest.raises(codegemm.CheckpointError, match=f"would replace .*{SHARDS[0]}, which is read"):
        quantize_file(model, other, CONFIG, force=True)
    shutil.move(other / SHARDS[0], model / SHARDS[0])
    assert contents(model) == {name.removeprefix("model/"): data for name, data in before.items()}


def test_an_existing_folder_is_replaced_only_by_force_and_only_a_models(model, target, monkeypatch):
    target.mkdir()
    quantize_file(model, target, "m1v4b3")  # an empty one holds nothing
    with pytest.raises(codegemm.CheckpointError, match="exists, and is replaced only by force"):
        quantize_file(model, target, CONFIG)
    (target / "notes").mkdir()
    (target / "notes" / "results.txt").write_text("mine")
    before = contents(target)
    with pytest.raises(codegemm.CheckpointError, match=r"holds notes/results\.txt, which would be lost"):
        quantize_file(model, target, CONFIG, force=True)
    assert contents(target) == before
    shutil.rmtree(target / "notes")
    quantize_file(model, target, CONFIG, force=True)
    assert {one.spec.name for one in codegemm.load_all(target).values()} == {str(codegemm.CodebookConfig.parse(CONFIG))}


def test_a_folder_needs_a_folder(model, tmp_path):
    (tmp_path / "file").write_text("before")
    for name in ("file", "new.safetensors"):
        with pytest.raises(codegemm.CheckpointError, match="must be a folder"):
            quantize_file(model, tmp_path / name, CONFIG, force=True)
    with pytest.raises(codegemm.CheckpointError, match="there is no folder"):
        quantize_file(model, tmp_path / "no" / "folder", CONFIG)


def test_a_target_inside_the_source(model):
    """It is no part of the model, nor is what an interrupted run left beside it."""
    for _ in range(2):
        done = quantize_file(model, model / "small", CONFIG, force=True)
        assert done.left_out == LEFT_OUT
        assert sorted(contents(model / "small")) == sorted([*SHARDS, INDEX, *COPIED])


def test_a_dry_run_writes_nothing(model, target):
    before = contents(model.parent)
    planned = quantize_file(model, target, CONFIG, dry_run=True)
    assert contents(model.parent) == before
    assert not target.exists()
    done = quantize_file(model, target, CONFIG)
    assert (planned.quantized, planned.copied, planned.left_out) == (done.quantized, done.copied, done.left_out)


def test_a_shard_may_be_a_link(model, target, tmp_path):
    """As in Hugging Face's cache."""
    (tmp_path / "blobs").mkdir()
    for name in (*SHARDS, "config.json"):
        shutil.move(model / name, tmp_path / "blobs" / name)
        (model / name).symlink_to(f"../blobs/{name}")
    quantize_file(model, target, CONFIG)
    assert not any(path.is_symlink() for path in target.rglob("*"))
    assert len(codegemm.load_all(target)) == 3


def test_the_card(model, target):
    """What it said stays, and how the layers are loaded is said once."""
    (model / "README.md").write_bytes(b"---\nlicense: mit\n---\n\nOf somebody, \xff\n")
    quantize_file(model, target, CONFIG)
    card = (target / "README.md").read_bytes()
    assert card.startswith(b"---\nlicense: mit\n---\n\nOf somebody, \xff\n\n## Loading the quantised layers\n\n")
    assert b"import codegemm.hf" in card
    assert with_note(target, CONFIG) == {"README.md": card}


def test_a_config_that_is_no_json_is_refused_first(model, target):
    (model / "config.json").write_text("{")
    with pytest.raises(codegemm.CheckpointError, match=r"config\.json: can't be read"):
        quantize_file(model, target, CONFIG)
    assert not target.exists()


def test_what_config_json_says_already_stays(model, target):
    """Of another project's, or of layers that were quantised before."""
    said = '{"quantization_config": {"quant_method": "other"}}'
    (model / "config.json").write_text(said)
    quantize_file(model, target, CONFIG)
    assert (target / "config.json").read_text() == said
