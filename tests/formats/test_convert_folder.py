"""`convert_folder`: AQLM's Hugging Face folders of any layout, what is refused, and what is left where it fails."""

import json
import os
import shutil
import weakref

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.processes import codegemm as run

import codegemm
from codegemm import CheckpointError, destination, files
from codegemm.arrays import bfloat16
from codegemm.checkpoints import convert_folder, folder, from_aqlm
from codegemm.shards import write_index

INDEX = "model.safetensors.index.json"
SHARDS = tuple(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
SHAPES = {"q_proj": (48, 64), "k_proj": (16, 64), "down_proj": (64, 96)}
KINDS = {"2x8": (2, 8, 8), "1x16": (1, 16, 8), "3x12": (3, 12, 4), "1x5": (1, 5, 16)}
CONFIGS = {"2x8": "m2v8g-1", "1x16": "m1v8b16g-1", "3x12": "m3v4b12g-1", "1x5": "m1v16b5g-1"}
COPIED = {"tokenizer.json": "a tokenizer", "generation_config.json": "{}", "sub/notes.txt": "notes"}


def layer(rng, rows, columns, m, b, v, dtype=np.float16):
    """The tensors of one, as AQLM stores them, and its W in float64."""
    codes = rng.integers(0, 1 << b, (rows, columns // v, m))
    codebooks = (rng.standard_normal((m, 1 << b, 1, v)) / m).astype(dtype)
    scales = rng.uniform(0.5, 2, (rows, 1, 1, 1)).astype(dtype)
    vectors = sum(codebooks[i, codes[..., i], 0].astype(np.float64) for i in range(m))
    dense = scales[:, :, 0, 0].astype(np.float64) * vectors.reshape(rows, columns)
    wrapped = np.where(codes >> b - 1, codes - (1 << b), codes).astype(np.int8 if b <= 8 else np.int16)
    return {"codes": wrapped, "codebooks": codebooks, "scales": scales}, dense


class Model:
    """A folder of AQLM's, and the dense matrices that it stands for."""

    def __init__(self, path, rng, kind="2x8", dtype=np.float16):
        self.path, (m, b, v) = path, KINDS[kind]
        path.mkdir()
        self.dense, self.tensors = {}, {}
        for i in range(2):
            for name, shape in SHAPES.items():
                name = f"model.layers.{i}.{name}"
                its, self.dense[name] = layer(rng, *shape, m, b, v, dtype)
                self.tensors |= {f"{name}.{end}": array for end, array in its.items()}
                if "down" not in name:
                    self.tensors[f"{name}.bias"] = rng.standard_normal(shape[0]).astype(dtype)
        self.tensors["model.embed_tokens.weight"] = rng.standard_normal((40, 64)).astype(dtype)
        self.tensors["lm_head.weight"] = rng.standard_normal((40, 64)).astype(dtype)
        self.tensors["model.norm.weight"] = np.ones(64, np.float32)
        self.others = [name for name in self.tensors if not name.endswith((".codes", ".codebooks", ".scales"))]
        self.said = {
            "quant_method": "aqlm", "in_group_size": v, "out_group_size": 1, "num_codebooks": m,
            "nbits_per_codebook": b, "linear_weights_not_to_quantize": ["model.embed_tokens.weight", "x.gate"],
            "of_another_version": 1,
        }  # fmt: skip
        self.config = {"model_type": "llama", "ä": [1.5, None], "torch_dtype": "float16"}
        self.write()
        for name, text in {**COPIED, ".hidden": "", "old.bin": "weights in another form"}.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text(text)

    def write(self):
        """config.json and a single file."""
        (self.path / "config.json").write_text(json.dumps({**self.config, "quantization_config": self.said}))
        save_file(self.tensors, self.path / "model.safetensors", {"format": "pt", "note": "kept"})

    def scatter(self, rng):
        """Tensor by tensor over three shards instead."""
        (self.path / "model.safetensors").unlink()
        places = {name: SHARDS[int(rng.integers(3))] for name in self.tensors}
        for shard in SHARDS:
            its = {name: array for name, array in self.tensors.items() if places[name] == shard}
            save_file(its, self.path / shard, {"format": "pt"})
        held = [files.File(self.path / shard) for shard in SHARDS]
        write_index(self.path / INDEX, held, {"total_parameters": 7})
        return places


@pytest.fixture
def model(tmp_path, rng):
    return Model(tmp_path / "aqlm", rng)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "ours"


def contents(path):
    """Of all files by their path."""
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def check(model, target, config, tolerance=0.0):
    """All that a converted folder must hold."""
    found = codegemm.load_all(target)
    assert found.keys() == model.dense.keys()
    for name, dense in model.dense.items():
        ends = ("codes", "codebooks", "scales")
        assert found[name] == from_aqlm(*(model.tensors[f"{name}.{end}"] for end in ends))
        assert found[name].spec.name == config
        error = abs(found[name].dequantize(np.float64) - dense).max()
        assert error <= tolerance * abs(dense).max()
    held = files.File
    shards = [held(path) for path in sorted(target.glob("*.safetensors"))]
    tensors = {name: one.numpy() for shard in shards for name, one in shard.tensors.items()}
    for name in model.others:
        assert tensors[name].dtype == model.tensors[name].dtype
        assert np.array_equal(tensors[name], model.tensors[name])
    for shard in shards:
        assert shard.metadata["format"] == "pt"
        assert codegemm.load_all(shard.path).items() <= found.items()  # each is whole in its shard
    assert sum(len(codegemm.load_all(shard.path)) for shard in shards) == len(found)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_any_kind(kind, sharded, tmp_path, target, rng):
    model = Model(tmp_path / "aqlm", rng, kind)
    if sharded:
        model.scatter(rng)
    before = contents(model.path)
    done = convert_folder(model.path, target)
    assert contents(model.path) == before
    assert sorted(os.listdir(tmp_path)) == ["aqlm", "ours"]
    check(model, target, CONFIGS[kind], 1e-12)
    assert sorted(contents(target)) == sorted(name for name in before if name not in (".hidden", "old.bin"))
    assert all((target / name).read_text() == text for name, text in COPIED.items())
    assert json.loads((target / "config.json").read_text()) == {
        **model.config,
        "quantization_config": {
            "quant_method": "codegemm",
            "version": 1,
            "config": CONFIGS[kind],
            "layers": {},
            "modules_to_not_convert": ["model.embed_tokens", "x.gate", "lm_head"],
        },
    }
    assert done.converted == dict.fromkeys(model.dense, CONFIGS[kind])
    assert sorted(done.copied) == sorted(model.others)
    assert done.left_out == ("old.bin",)
    ours, theirs = (
        sum(each.stat().st_size for each in path.glob("model*.safetensors")) for path in (target, model.path)
    )
    assert (done.source_bytes, done.target_bytes) == (theirs, ours)
    if sharded:
        index = json.loads((target / INDEX).read_text())
        assert index["metadata"]["total_parameters"] == 7
        assert index["weight_map"] == {name: s for s in SHARDS for name in files.File(target / s).tensors}
    else:
        assert files.File(target / "model.safetensors").metadata["note"] == "kept"


@pytest.mark.parametrize("dtype", [bfloat16(), np.dtype(np.float32)])
def test_other_floats_are_rounded_to_float16(dtype, tmp_path, target, rng):
    model = Model(tmp_path / "aqlm", rng, "2x8", dtype)
    convert_folder(model.path, target)
    check(model, target, "m2v8g-1", 2.0**-9)


@pytest.mark.parametrize("named", [["lm_head.weight"], ["model.lm_head", "lm_head"], None])
def test_the_head_is_named_once(named, model, target):
    model.said["linear_weights_not_to_quantize"] = named
    model.write()
    convert_folder(model.path, target)
    listed = json.loads((target / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert listed == [name.removesuffix(".weight") for name in named or ["lm_head"]]


def test_a_tied_head_is_not_named(model, target):
    del model.tensors["lm_head.weight"], model.said["linear_weights_not_to_quantize"]
    model.write()
    convert_folder(model.path, target)
    assert json.loads((target / "config.json").read_text())["quantization_config"]["modules_to_not_convert"] == []


def test_the_command(model, target):
    done = run("convert", model.path, target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"not copied: old.bin\n{target}: 6 weights in m2v8g-1, 7 other tensors copied; 0.")
    listed = run("info", target, "--json")
    assert listed.returncode == 0, listed.stderr
    weights = json.loads(listed.stdout)["weights"]
    assert [(one["name"], one["format"], tuple(one["shape"])) for one in weights] == [
        (name, "m2v8g-1", model.dense[name].shape) for name in sorted(model.dense)
    ]
    again = run("convert", model.path, target)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"codegemm: {target}: exists, and is replaced only by force (--force)\n"
    assert run("convert", model.path, target, "--force").returncode == 0


QUANT = "model.layers.1.q_proj"


def said(**values):
    return lambda model: model.said.update(values)


def drop(*keys):
    def change(model):
        for key in keys:
            (model.tensors if key in model.tensors else model.said).pop(key)

    return change


def tensor(end, change):
    def changed(model):
        model.tensors[f"{QUANT}.{end}"] = np.ascontiguousarray(change(model.tensors[f"{QUANT}.{end}"]))

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (said(quant_method="gptq"), r"config\.json: quant_method 'gptq'; can be read: aqlm"),
        (said(quant_method=["aqlm"]), r"quant_method \['aqlm'\]; can be read: aqlm"),
        (drop("quant_method"), "quant_method None; can be read: aqlm"),
        (said(quant_method="codegemm"), r"config\.json: quant_method 'codegemm': it is converted already"),
        (said(out_group_size=2), "quantization_config: out_group_size 2, must be 1: the kernels take codes of one row"),
        (drop("num_codebooks"), "num_codebooks None, must be an integer"),
        (said(in_group_size="8"), "in_group_size '8', must be an integer"),
        (said(in_group_size=32), r"v=32: must be an integer from 1 to 16 \(v is in_group_size"),
        (said(nbits_per_codebook=17), "b=17: must be an integer from 1 to 16"),
        (said(linear_weights_not_to_quantize="lm_head"), "linear_weights_not_to_quantize 'lm_head', must be a list"),
        (said(linear_weights_not_to_quantize=[3]), r"linear_weights_not_to_quantize \[3\], must be a list"),
        (said(linear_weights_not_to_quantize=False), "linear_weights_not_to_quantize False, must be a list"),
        (said(linear_weights_not_to_quantize=[f"{QUANT}.weight"]),
         rf"config\.json: linear_weights_not_to_quantize names '{QUANT}', and the files hold {QUANT}\.codes"),
        (said(linear_weights_not_to_quantize=["layers.0"]), r"names 'layers\.0', and the files hold model\.layers\.0"),
        (drop(f"{QUANT}.scales"), rf"aqlm: {QUANT}: {QUANT}\.scales is missing"),
        (drop(f"{QUANT}.codes"), rf"{QUANT}: {QUANT}\.codes is missing"),
        (drop(f"{QUANT}.codebooks", f"{QUANT}.scales"), rf"{QUANT}\.codebooks and {QUANT}\.scales are missing"),
        (said(num_codebooks=1), r"model\.safetensors: model\.layers\.0\.down_proj\.codes: I8 \[64, 12, 2\], must be I8 "
         r"or U8 or I16 or U16 \[rows, columns / 8, 1\]"),
        (said(in_group_size=4), r"down_proj\.codebooks: F16 \[2, 256, 1, 8\], must be .* \[2, 256, 1, 4\]"),
        (said(nbits_per_codebook=12), r"down_proj\.codes: I8 .*, must be I16 or U16"),
        (tensor("codes", lambda codes: codes.astype(np.int32)), rf"{QUANT}\.codes: I32 \[48, 8, 2\], must be I8 or U8"),
        (tensor("codes", lambda codes: codes[:, :0]), rf"{QUANT}\.codes: I8 \[48, 0, 2\], must be"),
        (tensor("codes", lambda codes: codes[:, :, :, None]), rf"{QUANT}\.codes: I8 \[48, 8, 2, 1\], must be"),
        (tensor("codes", lambda codes: codes[0, 0, 0]), rf"{QUANT}\.codes: I8 \[\d*\], must be"),
        (tensor("codebooks", lambda books: books.astype(np.float64)), rf"{QUANT}\.codebooks: F64 .*, must be F16 or"),
        (tensor("scales", lambda scales: scales[1:]), rf"{QUANT}\.scales: F16 \[47, 1, 1, 1\], must be .* \[48, 1"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_read(change, message, model, target, monkeypatch):
    monkeypatch.setattr(folder, "_made", None)
    change(model)
    model.write()
    with pytest.raises(CheckpointError, match=message) as raised:
        convert_folder(model.path, target)
    assert "\n" not in str(raised.value)
    assert os.listdir(target.parent) == ["aqlm"]


def test_a_folder_of_somebody_elses_is_kept(model, target):
    mine = target.with_name(f".{target.name}.converted") / "mine"
    mine.parent.mkdir()
    mine.write_text("kept")
    with pytest.raises(CheckpointError, match="holds mine, which would be lost: move it elsewhere"):
        convert_folder(model.path, target)
    assert mine.read_text() == "kept"
    assert not target.exists()


def test_links_to_themselves(model, target):
    (model.path / "me").symlink_to("me")
    assert "me" in convert_folder(model.path, target).left_out


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_files_that_may_not_be_read(model, target):
    for name in ("notes", "folder"):
        path = model.path / name
        path.mkdir() if name == "folder" else path.write_text("secret")
        path.chmod(0)
        with pytest.raises(CheckpointError, match=f"{name}: can't be read, and would be left out"):
            convert_folder(model.path, target)
        path.chmod(0o700)
        assert not target.exists()
    (model.path / "model.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: can't be read: Permission denied"):
        convert_folder(model.path, target)


def test_folders_that_are_none(model, target):
    for path in (model.path / "nowhere", model.path / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"must be a folder with config\.json and safetensors files"):
            convert_folder(path, target)
    (model.path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json: has no quantization_config; can be read: aqlm"):
        convert_folder(model.path, target)
    (model.path / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"config\.json: can't be read"):
        convert_folder(model.path, target)
    (model.path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"aqlm: holds no config\.json"):
        convert_folder(model.path, target)
    model.write()
    (model.path / "model.safetensors").rename(model.path / "pytorch_model.bin")
    (model.path / "old.bin").unlink()
    with pytest.raises(CheckpointError, match=r"aqlm: holds pytorch_model\.bin, a pickle; the weights must be in safe"):
        convert_folder(model.path, target)
    (model.path / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"aqlm: holds neither model\.safetensors nor"):
        convert_folder(model.path, target)
    save_file({"a.weight": np.ones((4, 4))}, model.path / "model.safetensors")
    with pytest.raises(CheckpointError, match="aqlm: none of its tensors are of a quantised layer"):
        convert_folder(model.path, target)
    model.write()
    convert_folder(model.path, target)
    with pytest.raises(CheckpointError, match="it is converted already"):
        convert_folder(target, target.with_name("again"))


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_whole_or_not_at_all(there, model, target, monkeypatch, rng):
    """Numbers that won't do, Ctrl-C and a full disk leave nothing, and what was there as it was."""
    if there:
        convert_folder(model.path, target)
    model.scatter(rng)
    before = contents(model.path.parent)

    def unchanged():
        assert contents(model.path.parent) == before
        assert sorted(os.listdir(model.path.parent)) == ["aqlm", "ours"][: 1 + there]

    name, made = sorted(model.dense)[-1], folder._made

    def stopped(file, layer_name, *rest):
        if layer_name == name:
            raise KeyboardInterrupt
        return made(file, layer_name, *rest)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    def fails(place, function, failing, error):
        with monkeypatch.context() as patch:
            patch.setattr(place, function, failing)
            with pytest.raises(error):
                convert_folder(model.path, target, force=True)
        unchanged()

    fails(folder, "_made", stopped, KeyboardInterrupt)
    for place, function in ((destination.shutil, "copyfile"), (files.os, "fsync"), (destination, "write_index")):
        fails(place, function, full, CheckpointError)


def test_numbers_that_will_not_do(model, target):
    scales = model.tensors[f"{QUANT}.scales"]
    scales[5] = np.nan
    model.write()
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: {QUANT}\.scales: nan at \[5, 0\]"):
        convert_folder(model.path, target)
    assert os.listdir(target.parent) == ["aqlm"]


def test_one_layer_at_a_time_is_in_memory(model, target, monkeypatch):
    """Each is written before the next is read."""
    alive, read = [], from_aqlm

    def counted(*tensors):
        assert not any(reference() is not None for reference in alive)
        weight = read(*tensors)
        alive.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr("codegemm.checkpoints.readers.from_aqlm", counted)
    convert_folder(model.path, target)
    assert len(alive) == len(model.dense)


def test_nothing_that_is_read_is_replaced(model, target):
    for place in (model.path, model.path.parent):
        with pytest.raises(CheckpointError, match=r"would replace .*aqlm, which is read"):
            convert_folder(model.path, place, force=True)
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds mine\.txt, which would be lost"):
        convert_folder(model.path, target, force=True)
    shutil.rmtree(target)
    target.write_text("a file")
    with pytest.raises(CheckpointError, match="must be a folder"):
        convert_folder(model.path, target, force=True)
