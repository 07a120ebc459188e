"""The package's files: round trips, laziness, damage, and what happens when a write fails."""

import errno
import json
import os
import struct
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import codegemm
from codegemm import CheckpointError, files, storage
from codegemm.arrays import bfloat16
from codegemm.formats import bits, random_weight


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 16), st.integers(1, 8), st.integers(1, 12), st.integers(1, 9), st.integers(1, 5))
def test_round_trip_of_any_configuration(tmp_path, v, m, b, rows, groups):
    weight = random_weight((rows, v * groups * 3), f"m{m}v{v}b{b}g{3 * v}")
    weight.save(tmp_path / "any.safetensors", "a.b")
    assert codegemm.load(tmp_path / "any.safetensors", "a.b") == weight


def test_the_documented_layout(tmp_path, make_weight):
    weight = make_weight(6, 60, "m2v4b3g12")
    weight.save(tmp_path / "w.safetensors", "layer.0")
    with safe_open(tmp_path / "w.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "codegemm"
    assert metadata["version"] == "1"
    assert json.loads(metadata["layer.0"]) == {"v": 4, "m": 2, "b": 3, "g": 12, "shape": [6, 60]}
    tensors = load_file(tmp_path / "w.safetensors")
    codes = tensors["layer.0.codes"]
    assert codes.dtype == np.uint8
    assert codes.shape == (6, -(-15 * 2 * 3 // 8))
    first_row = int.from_bytes(codes[0].tobytes(), "little")
    expected = weight.codes[0].ravel()
    assert [first_row >> 3 * i & 7 for i in range(30)] == expected.tolist()
    assert tensors["layer.0.codebooks"].shape == (2, 8, 4)
    assert tensors["layer.0.scales"].shape == (6, 5)


def test_several_weights(tmp_path, make_weight):
    joined = make_weight(30, 64, "m2v8g32", parts=3)
    qidxs = make_weight(16, 64, "e8p3").qidxs
    three_bit = codegemm.E8PWeight(qidxs, np.ones(64, np.float32), np.ones(16, np.float16), 2.5)
    storage.save_all(tmp_path / "w.safetensors", {"qkv": joined, "o": three_bit})
    loaded = codegemm.load_all(tmp_path / "w.safetensors")
    assert loaded == {"qkv": joined, "o": three_bit}
    assert loaded["o"].resid_scale == 2.5
    with pytest.raises(CheckpointError, match=r"holds 2 weights \(o, qkv\); name one"):
        codegemm.load(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="no weight 'q'; it has o, qkv"):
        codegemm.load(tmp_path / "w.safetensors", "q")


def test_other_tensors_travel_unchanged(tmp_path, make_weight):
    others = {
        "norm": np.arange(5, dtype=np.float32),
        "bf16": np.arange(6).astype(bfloat16()).reshape(2, 3),
        "flags": np.array([True, False]),
        "empty": np.empty((0, 3), np.int64),
        "scalar": np.array(3.5, np.float64),
        "layer.bias": np.ones(6, np.float16),
    }
    storage.save_all(tmp_path / "w.safetensors", {"layer": make_weight(6, 60, "m2v4b3g12")}, others, {"note": "kept"})
    file = files.File(tmp_path / "w.safetensors")
    assert file.metadata["note"] == "kept"
    for name, array in others.items():
        stored = file.tensors[name].numpy()
        assert stored.dtype == array.dtype
        assert np.array_equal(stored, array)
    raw = {name: file.tensors[name] for name in others}
    odd = files.RawTensor("F8_E4M3", (3,), np.arange(3, dtype=np.uint8))
    storage.save_all(tmp_path / "again.safetensors", {}, {**raw, "odd": odd})
    again = files.File(tmp_path / "again.safetensors").tensors
    assert all(np.array_equal(again[name].data, raw[name].data) for name in raw)
    assert again["odd"].dtype == "F8_E4M3"
    with pytest.raises(CheckpointError, match="dtype F8_E4M3"):
        again["odd"].numpy()


def test_codes_stay_on_disk(tmp_path, make_weight):
    for config in ("m2v8g32", "m1v8b16g-1"):
        make_weight(64, 256, config).save(tmp_path / "w.safetensors")
        base = codegemm.load(tmp_path / "w.safetensors").codes
        while base.base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert type(base).__name__ in ("memmap", "mmap")


def test_codes_of_other_widths_are_unpacked_at_their_first_use(tmp_path, make_weight, monkeypatch):
    weight = make_weight(64, 256, "m2v8b5g32")
    weight.save(tmp_path / "w.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(bits, "unpack", None)
        loaded = codegemm.load(tmp_path / "w.safetensors")
        assert (loaded.shape, loaded.config, loaded.device) == (weight.shape, weight.config, "cpu")
        assert loaded.nbytes == weight.nbytes
    assert loaded == weight
    assert loaded.codes is loaded.codes


def test_tensors_are_aligned(tmp_path, make_weight):
    weights = {f"w{i}": make_weight(3, 12, "m1v4b3g4") for i in range(4)}
    weights["wide"] = make_weight(3, 12, "m1v4b16")
    storage.save_all(tmp_path / "w.safetensors", weights, {"x": np.ones(3, np.uint8), "y": np.ones(1)})
    for tensor in files.File(tmp_path / "w.safetensors").tensors.values():
        assert tensor.data.ctypes.data % files._item_size(tensor) == 0
    assert codegemm.load(tmp_path / "w.safetensors", "wide").codes.flags.aligned


@pytest.fixture
def saved(tmp_path, make_weight):
    path = tmp_path / "w.safetensors"
    make_weight(48, 64, "m1v4g16").save(path)
    return path


def test_truncated_files(saved):
    whole = saved.read_bytes()
    parts = [whole[:length] for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1)]
    for content in (*parts, whole + b"more", b"\x80\x04\x95 a pickle, never to be read as one"):
        saved.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"w\.safetensors: not a whole safetensors file"):
            codegemm.load(saved)


def test_foreign_files(saved, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such file"):
        codegemm.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        codegemm.load(tmp_path)
    save_file({"a": np.ones(3)}, saved, {"format": "pt"})
    with pytest.raises(CheckpointError, match="format 'pt', must be 'codegemm'"):
        codegemm.load_all(saved)


def rewrite(path, change):
    """The file with its header changed."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def described(**values):
    def change(header):
        description = json.loads(header["__metadata__"]["weight"])
        header["__metadata__"]["weight"] = json.dumps({**description, **values})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(version="5"), "version '5', this package reads up to 4"),
        (lambda h: h["__metadata__"].update(version="x"), "version 'x'"),
        (lambda h: h["__metadata__"].pop("weight"), "description is missing or broken"),
        (lambda h: h["__metadata__"].update(weight="{"), "description is missing or broken"),
        (lambda h: h["__metadata__"].update(weight="[]"), "must be a JSON object"),
        (lambda h: h["__metadata__"].update(weight="[" * 200000), "description is missing or broken"),
        (lambda h: h["__metadata__"].update(version="9" * 5000), r"w\.safetensors: version '9999"),
        (described(part_rows=[24.9, 24]), "weight: "),
        (described(part_rows=[float("inf")]), "weight: "),
        (described(v=8), r"codes: uint8 \(48, 16\), must be uint8 \(48, 8\)"),
        (described(b=7), r"codes: uint8 \(48, 16\), must be"),
        (described(g=32), "the tensors are m1v4g16, the description says m1v4g32"),
        (described(shape=[48, 65]), "in_features=65"),
        (described(shape=[24, 64]), "codes: uint8"),
        (described(shape=7), "weight: "),
        (described(v="4"), "v='4': must be an integer"),
        (described(codebook="E9"), "codebook 'E9', must be 'E8P'"),
        (described(codebook="E8P"), "'weight.qidxs' is missing"),
        (lambda h: h["weight.codes"].update(dtype="I8"), "codes: int8"),
    ],
)
def test_files_that_contradict_themselves(change, message, saved):
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=message):
        codegemm.load(saved)


def test_damaged_values_are_found(saved):
    rewrite(saved, lambda header: None)
    data = bytearray(saved.read_bytes())
    tensors = files.File(saved).tensors
    place = data.index(tensors["weight.scales"].data.tobytes())
    data[place : place + 2] = np.float16(np.nan).tobytes()
    saved.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weight: scales: nan at \[0, 0\], must be finite"):
        codegemm.load(saved)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(step, saved, monkeypatch, make_weight):
    before = saved.read_bytes()
    monkeypatch.setattr(files.os, step, Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(CheckpointError, match=r"w\.safetensors: could not be written: No space left on device"):
        make_weight(48, 64, "m1v4g16").save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["w.safetensors"]


def test_a_folder_that_is_not_there(tmp_path, make_weight):
    with pytest.raises(CheckpointError, match="could not be written: No such file or directory"):
        make_weight(16, 64, "m1v4").save(tmp_path / "nowhere" / "w.safetensors")


def test_permissions_and_links_stay(saved, make_weight):
    saved.chmod(0o600)
    link = saved.with_name("link.safetensors")
    link.symlink_to(saved.name)
    weight = make_weight(16, 64, "m1v4")
    weight.save(link)
    assert link.is_symlink()
    assert codegemm.load(saved) == weight
    assert saved.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("tensors", "metadata", "kind", "message"),
    [
        ({}, {"note": 3}, ValueError, "metadata 'note': 3, must be text"),
        ({}, {"note": "a\udcff"}, ValueError, r"metadata 'note': '\\udcff', must be text that UTF-8 holds"),
        ({}, {"note": "x" * 100_000_000}, ValueError, r"names and metadata of 100,000,\d+ bytes, a file holds up to"),
        ({}, {"a": "x"}, ValueError, "metadata 'a': a weight has that name"),
        ({"__metadata__": np.ones(3)}, {}, ValueError, "name '__metadata__': can't be that of a tensor"),
        ({"\ud800": np.ones(3)}, {}, ValueError, "can't be that of a tensor"),
        ({"c": np.ones(3, complex)}, {}, TypeError, "tensor 'c': dtype complex128: must be bfloat16 or one of"),
        ({"a.scales": np.ones(3)}, {}, ValueError, r"tensor 'a\.scales': is part of a weight"),
    ],
)
def test_what_a_file_cannot_hold_is_said_before_it_is_written(tensors, metadata, kind, message, saved, make_weight):
    before = saved.read_bytes()
    with pytest.raises(kind, match=message):
        storage.save_all(saved, {"a": make_weight(16, 64, "m1v4")}, tensors, metadata)
    assert saved.read_bytes() == before


def test_a_pipe_or_a_device_is_never_replaced(saved, tmp_path, make_weight):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(CheckpointError, match="pipe: is no regular file"):
            make_weight(16, 64, "m1v4").save(path)
        with pytest.raises(CheckpointError, match="is no regular file"):
            files.check_writable(path)
    assert pipe.is_fifo()
    with pytest.raises(TypeError, match="weight 'a': int, must be a quantised weight"):
        storage.save_all(saved, {"a": 5})
    with pytest.raises(CheckpointError, match="aaa"):
        codegemm.load("a" * 300)


def test_other_byte_orders_and_foreign_codes(tmp_path, make_weight):
    weight = make_weight(16, 64, "m1v4")
    others = {"big": np.arange(4, dtype=">f4"), "other.codes": np.arange(3)}
    storage.save_all(tmp_path / "w.safetensors", {"a": weight}, others)
    assert codegemm.load_all(tmp_path / "w.safetensors") == {"a": weight}
    stored = files.File(tmp_path / "w.safetensors").tensors
    for name, array in others.items():
        assert np.array_equal(stored[name].numpy(), array)


def test_foreign_metadata_is_no_weight(saved, make_weight):
    note = {"note": '{"shape": [16, 64], "format": "pt"}'}
    storage.save_all(saved, {"a": make_weight(16, 64, "m1v4")}, {}, note)
    assert codegemm.load_all(saved).keys() == {"a"}
    assert files.File(saved).metadata["note"] == note["note"]


@pytest.mark.parametrize("core", [None, 5, "x", {"format": "transformed"}])
def test_a_core_that_is_none_is_refused(core, saved, make_weight):
    make_weight(16, 64, "e8p+rotated").save(saved)
    change = described(core=core)
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=r"weight: core .* must be the description of a weight of another format"):
        codegemm.load(saved)


def test_a_file_may_replace_the_one_it_was_read_from(saved):
    weight = codegemm.load(saved)
    copy = codegemm.CodebookWeight(*(np.array(a) for a in (weight.codes, weight.codebooks, weight.scales)))
    weight.save(saved)
    assert codegemm.load(saved) == copy


def test_names_that_collide(tmp_path, make_weight):
    weight = make_weight(16, 64, "m1v4")
    for name in ("", "format", "version"):
        with pytest.raises(ValueError, match="can't be that of a weight"):
            weight.save(tmp_path / "w.safetensors", name)


def test_what_a_killed_writer_left_goes_a_day_later(tmp_path, make_weight):
    path = tmp_path / "w [1].safetensors"
    old, young, foreign = (
        tmp_path / name for name in (f".{path.name}.0123abcd", f".{path.name}.0123abce", ".w.0123abcd")
    )
    for each in (old, young, foreign):
        each.write_bytes(b"begun")
    for each in (old, foreign):
        os.utime(each, times=(0, 0))
    make_weight(4, 16, "m1v4").save(path)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, young.name, foreign.name}
