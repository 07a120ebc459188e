"""Weights in files that say `format: pt`, as Hugging Face's libraries write them: whole, in shards, and damaged."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import codegemm
from codegemm import CheckpointError, contents, files, quantize_file
from codegemm.exploration.matrices import load_matrices
from codegemm.formats.native import hf_metadata
from codegemm.measuring.sources import file_cases
from codegemm.shards import open_model, write_index

CONFIGS = {"q": "m1v4g32", "k": "m2v8b5g-1", "v": "e8p", "o": "m2v4g16+ordered+rotated+terms2", "up": "qtip+added"}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def weights(make_weight):
    """By name, of all that a description may say."""
    return {f"layers.{name}": make_weight(32, 64, config) for name, config in CONFIGS.items()}


@pytest.fixture
def tensors(weights):
    """As a file holds them, with a bias and a norm beside."""
    its = {f"{n}.{end}": np.array(array) for n, one in weights.items() for end, array in one.stored().tensors.items()}
    return {**its, "layers.q.bias": np.ones(32, np.float32), "norm.weight": np.ones(64, np.float32)}


@pytest.fixture
def metadata(weights):
    return {"format": "pt", **hf_metadata({name: weight.stored() for name, weight in weights.items()})}


def scatter(folder, tensors, metadata, rng, count=3):
    """Each tensor in a shard of its own choice; the shard of each."""
    names = rng.permutation([f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]).tolist()
    places = {name: names[i % count] for i, name in enumerate(rng.permutation(sorted(tensors)).tolist())}
    for shard in names:
        save_file({name: tensors[name] for name, place in places.items() if place == shard}, folder / shard, metadata)
    write_index(folder / INDEX, [files.File(folder / name) for name in sorted(names)], {})
    return places


def rewrite(path, change):
    """The file with other metadata."""
    held = files.File(path)
    metadata = dict(held.metadata)
    change(metadata)
    files.write(path, held.tensors, metadata)


def test_one_file(weights, tensors, metadata, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata)
    for place in (path, tmp_path):
        assert codegemm.load_all(place) == weights
        assert codegemm.load(place, "layers.o") == weights["layers.o"]
    with pytest.raises(CheckpointError, match=r"no weight 'norm'; it has layers\.k, layers\.o"):
        codegemm.load(path, "norm")
    base = codegemm.load(path, "layers.q").codes
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert type(base).__name__ in ("memmap", "mmap")


def test_tensors_of_one_weight_in_several_shards(weights, tensors, metadata, tmp_path, rng):
    places = scatter(tmp_path, tensors, metadata, rng)
    assert codegemm.load_all(tmp_path) == codegemm.load_all(tmp_path / INDEX) == weights
    assert list(codegemm.load_all(tmp_path)) == sorted(weights)
    for shard in set(places.values()):
        whole = {
            name: weight
            for name, weight in weights.items()
            if {places[f"{name}.{end}"] for end in weight.stored().tensors} == {shard}
        }
        assert codegemm.load_all(tmp_path / shard) == whole


def test_shards_without_descriptions_beside_those_that_have_them(weights, tensors, metadata, tmp_path, rng):
    places = scatter(tmp_path, tensors, metadata, rng)
    for shard in set(places.values()) - {places["norm.weight"]}:
        rewrite(tmp_path / shard, lambda metadata: metadata.pop("codegemm"))
    assert codegemm.load_all(tmp_path) == weights


def test_weights_that_are_not_there(weights, tensors, metadata, tmp_path, rng):
    """Are ignored where nothing of them is; a folder that has some of their tensors lacks the others."""
    gone = {name: array for name, array in tensors.items() if not name.startswith("layers.o.")}
    save_file(gone, tmp_path / "model.safetensors", metadata)
    assert codegemm.load_all(tmp_path).keys() == weights.keys() - {"layers.o"}
    for missing in (["signs"], ["codes", "order"]):
        some = {name: array for name, array in tensors.items() if name not in [f"layers.o.{end}" for end in missing]}
        save_file(some, tmp_path / "model.safetensors", metadata)
        told = ", ".join(f"layers.o.{end}" for end in missing)
        with pytest.raises(CheckpointError, match=rf"layers\.o: {told} (is|are) missing"):
            codegemm.load_all(tmp_path)
        assert codegemm.load_all(tmp_path / "model.safetensors").keys() == weights.keys() - {"layers.o"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"version": 5, "weights": {}}, r"model\.safetensors: version 5, this package reads up to 4"),
        ({"version": "1", "weights": {}}, "version '1', this package"),
        ({"version": None, "weights": {}}, "version None, this package"),
        ({"version": [1], "weights": {}}, r"version \[1\], this package"),
        ({"version": 1}, "metadata 'codegemm' is broken .*'weights'"),
        ({"version": 1, "weights": []}, r"weights \[\], must be a JSON object"),
        ({"version": 1, "weights": {"layers.q": 3}}, r"layers\.q: its description is 3, must be a JSON object"),
        ({"version": 1, "weights": {"layers.q": {"format": "x"}}}, r"layers\.q: .*'x' is not registered"),
        ({"version": 1, "weights": {"layers.q": {"format": "transformed", "core": 5}}}, r"layers\.q: .*core 5: must"),
        ({"version": 1, "weights": {"layers.q": {"tensors": 3, "format": "qtip"}}}, r"layers\.q: its description"),
        ({"version": 1, "weights": {"layers.q": {"v": 4}}}, r"layers\.q: 'shape' is missing"),
        ([], "metadata 'codegemm' is broken"),
        ("{", "metadata 'codegemm' is broken"),
        ("[" * 200000, "metadata 'codegemm' is broken"),
    ],
)
def test_broken_descriptions(entry, message, tensors, tmp_path):
    text = entry if isinstance(entry, str) else json.dumps(entry)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt", "codegemm": text})
    with pytest.raises(CheckpointError, match=message):
        codegemm.load_all(tmp_path)


def test_shards_that_contradict_each_other(tensors, metadata, tmp_path, rng):
    places = scatter(tmp_path, tensors, metadata, rng)
    other = json.loads(metadata["codegemm"])
    other["weights"]["layers.q"]["g"] = 16
    rewrite(tmp_path / places["norm.weight"], lambda metadata: metadata.update(codegemm=json.dumps(other)))
    with pytest.raises(CheckpointError, match=r"layers\.q: another shard describes it otherwise"):
        codegemm.load_all(tmp_path)


def test_a_folder_whose_descriptions_were_dropped(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    readers = (
        codegemm.load_all,
        lambda folder: file_cases(folder, (), None),
        lambda folder: load_matrices(folder, ["norm.weight"], None),
        lambda folder: quantize_file(folder, folder.parent / "out", "m1v4b2", include=".*"),
    )
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "codegemm"}}))
    for read in readers:
        with pytest.raises(CheckpointError, match=r"lack the metadata 'codegemm', .* save_pretrained"):
            read(tmp_path)
    for said in ("{}", '{"quantization_config": null}', '{"quantization_config": 3}', "[]", "{", "content"):
        (tmp_path / "config.json").write_text(said)
        with pytest.raises(CheckpointError, match="format 'pt', must be 'codegemm'"):
            codegemm.load_all(tmp_path)


def test_they_are_not_quantised_again(weights, tensors, metadata, tmp_path, rng):
    """Whatever is asked for, and wherever their tensors are; what is quantised beside them joins them."""
    folder, target = tmp_path / "model", tmp_path / "more"
    folder.mkdir()
    dense = rng.standard_normal((64, 64)).astype(np.float32)
    scatter(folder, {**tensors, "down.weight": dense}, metadata, rng)
    done = quantize_file(folder, target, "m1v4b2", include=".*")
    assert [one.tensor for one in done.quantized] == ["down.weight"]
    assert {one.reason for one in done.copied} == {None, "is part of a quantised weight"}
    assert codegemm.load_all(target) == {**weights, "down": codegemm.quantize(dense, "m1v4b2")}
    assert contents.weight_names(open_model(target)) == {*weights, "down"}
    with pytest.raises(ValueError, match="quantised already"):
        file_cases(folder, (), ["m1v4g16"])
    with pytest.raises(CheckpointError, match="quantised already"):
        load_matrices(folder, [], None)
    assert len(file_cases(folder, ("layers.o",), None)) == 1


def test_a_weight_may_be_called_as_the_entry_is(make_weight, tmp_path):
    weight = make_weight(16, 64, "m1v4")
    weight.save(tmp_path / "w.safetensors", "codegemm")
    assert codegemm.load_all(tmp_path / "w.safetensors") == {"codegemm": weight}
