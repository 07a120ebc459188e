"""Files that were damaged, or say something else than they hold: an error that names the file, or a whole weight."""

import json

import numpy as np
import pytest
from emulator import cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import codegemm
from codegemm import CheckpointError
from codegemm.formats import random_weight
from codegemm.formats.native import write_hf_weights

WEIGHTS = {
    "m1v4g8": (8, 32),
    "m1v4b5g16": (5, 32),
    "m1v2b11g-1": (3, 16),
    "q1g8": (4, 16),
    "q3v4g8+rotated16+added": (4, 16),
    "m1v4g8+ordered+rotated16+offsets": (4, 32),
    "m2v4b4g16+terms3": (4, 32),
    "e8p": (16, 64),
    "e8p4+rotated16+added": (16, 64),
    "qtip3+ordered": (32, 32),
}
VALUES = (
    None, True, 0, 1, -1, 4, 8, 16, 4.0, 16.0, 1e308, float("nan"), 2**31, 2**64, "", "4", "E8P", "scaled", "qtip",
    [], [16], [16, 32.0], [4, [2]], [0, 5], {}, {"format": "qtip"},
)  # fmt: skip
KEYS = ("v", "m", "b", "g", "shape", "part_rows", "terms", "block", "offsets", "ordered", "core", "format", "bits")


class Files(list):
    """Bytes, of which a failure prints none."""

    def __repr__(self):
        return f"<{len(self)} files>"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of every kind, as bytes: this package's, and those that say `format: pt`."""
    path, found = tmp_path_factory.mktemp("whole") / "w.safetensors", Files()
    for text, shape in WEIGHTS.items():
        weight = random_weight(shape, text)
        weight.save(path)
        found.append(path.read_bytes())
        write_hf_weights(path, {"weight": weight.stored()}, {}, {})
        found.append(path.read_bytes())
    return found


def header_of(file):
    """What stands before the tensors, and these."""
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


def joined(header, tensors):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + tensors


def flipped(random, file):
    """A few bits are others."""
    changed = bytearray(file)
    for _ in range(random.choice((1, 1, 4))):
        changed[random.randrange(len(file))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(random, file):
    """The end is missing."""
    return file[: random.randrange(len(file))]


def told_otherwise(random, file):
    """The description has another value."""
    header, tensors = header_of(file)
    metadata = header["__metadata__"]
    hugging_face = "codegemm" in metadata
    told = json.loads(metadata["codegemm" if hugging_face else "weight"])
    weight = told["weights"]["weight"] if hugging_face else told
    inner = weight["core"] if "core" in weight and random.random() < 0.3 else weight
    key = random.choice((*inner, random.choice(KEYS)))
    value = inner.get(key)
    if isinstance(value, list) and value and random.random() < 0.5:
        inner[key] = [random.choice(VALUES), *value[1:]]
    elif isinstance(value, int) and random.random() < 0.5:
        inner[key] = random.choice((value + 1, value - 1, value + 256, float(value)))
    else:
        inner[key] = random.choice(VALUES)
    metadata["codegemm" if hugging_face else "weight"] = json.dumps(told)
    return joined(header, tensors)


def resized(random, file):
    """A tensor is twice or half as long along an axis, and the file is whole."""
    header, tensors = header_of(file)
    arrays = {
        name: (entry["dtype"], entry["shape"], tensors[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    name = random.choice(sorted(arrays))
    dtype, shape, data = arrays[name]
    axis, times = random.randrange(len(shape)), random.choice((0, 0.5, 2))
    other = [max(1, int(length * times)) if times else 0 for length in shape[axis : axis + 1]]
    other = shape[:axis] + other + shape[axis + 1 :]
    needed = len(data) // max(1, int(np.prod(shape))) * int(np.prod(other))
    arrays[name] = dtype, other, (data * 3)[:needed]
    again, offset = {"__metadata__": header["__metadata__"]}, 0
    for each, (dtype, shape, data) in arrays.items():
        again[each] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    return joined(again, b"".join(data for *_, data in arrays.values()))


def loaded(path):
    """The weights of a file, and what is wrong with it."""
    try:
        return codegemm.load_all(path), ""
    except CheckpointError as error:
        return {}, str(error)


@settings(max_examples=4000 if cases.ALL else 400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.sampled_from((flipped, cut, told_otherwise, resized)))
def test_a_damaged_file_is_named_or_holds_a_weight(whole, tmp_path, random, damage):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(random, random.choice(whole)))
    weights, error = loaded(path)
    assert str(path) in error or not error
    for weight in weights.values():
        rows, columns = weight.shape
        with np.errstate(all="ignore"):  # other numbers may be too large
            assert weight.dequantize().shape == (rows, columns), repr(weight)
            assert (np.ones((2, columns), np.float32) @ weight.T).shape == (2, rows)
        weight.save(tmp_path / "again.safetensors")
        assert codegemm.load(tmp_path / "again.safetensors").spec == weight.spec


@pytest.mark.parametrize(("bits", "told"), [(9, 16), (4, 8), (8, 4), (16, 9)])
def test_codebooks_of_another_size_than_the_codes_name(bits, told, tmp_path, rng):
    """The codes are of as many bits as the description says: they name centroids that are not there."""
    rows, columns = 16, 256
    tensors = {
        "weight.codes": rng.integers(0, 256, (rows, columns // 16 * told // 8), np.uint8),
        "weight.codebooks": rng.standard_normal((1, 1 << bits, 16)).astype(np.float16),
        "weight.scales": np.ones((rows, 1), np.float16),
    }
    described = json.dumps({"v": 16, "m": 1, "b": told, "g": -1, "shape": [rows, columns]})
    save_file(tensors, tmp_path / "w.safetensors", {"format": "codegemm", "version": "1", "weight": described})
    with pytest.raises(CheckpointError, match="the tensors are m1v16"):
        codegemm.load(tmp_path / "w.safetensors")
