"""A format that somebody else adds, all of it in this file, gets what the package's own have."""

import importlib.metadata
import json
import re
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from support import format_checks
from support.kernels import Twice, joined

import codegemm
from codegemm import CheckpointError, Format, Quantizer, Spec, Weight, formats
from codegemm.cli import cli
from codegemm.engines.cpu import device
from codegemm.quantize.stored import quantized


@dataclass(frozen=True)
class TernaryConfig:
    """Weights of -1, 0 and 1 times a scale for `group` of them: `ternary64`."""

    group: int

    def __str__(self):
        return f"ternary{self.group}"


@dataclass(frozen=True)
class TernarySpec(Spec):
    config: TernaryConfig

    @property
    def groups(self):
        return self.in_features // self.config.group

    @property
    def packed_bits(self):
        return self.out_features * (2 * self.in_features + 16 * self.groups)


class TernaryWeight(Weight):
    format_name = "ternary"
    spec_type = TernarySpec
    tensor_names = ("signs3", "scales")

    def __init__(self, signs3, scales):
        for name, array, dtype in (("signs3", signs3, np.int8), ("scales", scales, np.float16)):
            if array.dtype != dtype or array.ndim != 2:
                raise ValueError(f"{name}: {array.dtype} {array.shape}, must be {np.dtype(dtype)} with two axes")
        if len(scales) != len(signs3) or signs3.shape[1] % scales.shape[1]:
            raise ValueError(f"scales: {scales.shape} for signs3 {signs3.shape}")
        self.signs3, self.scales = signs3, scales

    @property
    def spec(self):
        return TernarySpec(*self.signs3.shape, TernaryConfig(self.signs3.shape[1] // self.scales.shape[1]))

    def core_blocks(self, dtype):
        groups = self.signs3.reshape(*self.scales.shape, -1).astype(dtype) * self.scales[..., None].astype(dtype)
        yield 0, groups.reshape(self.shape)

    def __getitem__(self, rows):
        return TernaryWeight(self.signs3[rows], self.scales[rows])

    @classmethod
    def join(cls, weights):
        return cls(*(np.concatenate([getattr(w, name) for w in weights]) for name in cls.tensor_names))


class Ternary(Format):
    config, weight = TernaryConfig, TernaryWeight
    syntax = "ternary<group size>"
    examples = ("ternary8",)

    def parse(self, text):
        match = re.fullmatch(r"ternary(\d+)", text)
        return TernaryConfig(int(match[1])) if match else None

    def spec(self, shape, config):
        if config.group < 1 or shape[1] % config.group:
            raise ValueError(f"in_features={shape[1]}: must be a multiple of the group size {config.group}")
        return TernarySpec(*shape, config)

    def random(self, spec, seed):
        rng, (rows, columns) = np.random.default_rng(seed), spec.shape
        scales = rng.uniform(0.5, 1.5, (rows, spec.groups)).astype(np.float16)
        return TernaryWeight(rng.integers(-1, 2, (rows, columns), np.int8), scales)


class Rounding(Quantizer):
    format = "ternary"

    def quantize(self, matrix, config, job):
        groups = matrix.reshape(len(matrix), -1, config.group)
        scales = np.abs(groups).mean(-1).astype(np.float16)
        with job.progress(f"quantizing to {config}"):
            rounded = np.clip(np.rint(groups / np.maximum(scales, 1e-6)[..., None]), -1, 1)
        return TernaryWeight(rounded.astype(np.int8).reshape(matrix.shape), scales)


@pytest.fixture
def ternary():
    yield codegemm.register_format(Ternary())
    codegemm.unregister_format("ternary")


@pytest.fixture
def rounding(ternary):
    yield codegemm.register_quantizer(Rounding())
    codegemm.unregister_quantizer("ternary")


@pytest.mark.parametrize("text", ["ternary8", "ternary8+rotated", "ternary8+rotated4+offsets", "ternary8+added+terms3"])
def test_it_owes_what_every_format_owes(text, ternary, tmp_path, rng):
    around = next(format for format in formats.registered() if format.name == "transformed")
    format_checks.check_text(ternary if "+" not in text else around, text)
    format_checks.check_memory(text)
    format_checks.check_file(text, tmp_path)
    format_checks.check_rows(text, tmp_path)
    format_checks.check_products(text, rng)


def run(*arguments):
    result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_it_is_quantised_saved_loaded_compared_multiplied_and_listed(rounding, tmp_path, monkeypatch, rng):
    matrix = rng.standard_normal((24, 64)).astype(np.float32)
    weight = codegemm.quantize(matrix, "ternary16")
    assert isinstance(weight, TernaryWeight)
    assert np.linalg.norm(weight.dequantize() - matrix) < 0.6 * np.linalg.norm(matrix)
    rotated = codegemm.quantize(matrix, "ternary16", rotate=True)
    assert (rotated.spec.name, rotated.core.spec.name) == ("ternary16+rotated", "ternary16")
    assert np.linalg.norm(rotated.dequantize() - matrix) < 0.6 * np.linalg.norm(matrix)
    x = rng.standard_normal((3, 64))
    for each in (weight, rotated):
        assert np.allclose(codegemm.matmul(x, each.T, kernel="reference"), x @ each.dequantize(np.float64).T)
        with pytest.raises(codegemm.KernelError, match=r"no kernel is chosen automatically .* dense \(usable\)"):
            x @ each.T

    quantised, compared = tmp_path / "quantised.safetensors", tmp_path / "compared.json"
    codegemm.save_all(quantised, {"up": weight, "down": rotated})
    assert codegemm.load_all(quantised) == {"up": weight, "down": rotated}
    listed = run("info", quantised)
    assert "ternary16 " in listed
    assert "ternary16+rotated" in listed

    monkeypatch.setattr(device, "last_level_cache", lambda: 1 << 12)  # else thousands of copies of so small a weight
    monkeypatch.setattr(device, "measure_bandwidth", lambda: 1e10)
    with joined(Twice()):
        run("compare", "--shape", "24x64", "--config", "ternary16", "--batch", 2, "--seconds", 0, "--json", compared)
    rows = json.loads(compared.read_text())["rows"]
    assert {(row["kernel"], row["config"]) for row in rows} >= {("dense", ""), ("twice", "ternary16")}
    assert all(row["error"] < 1e-2 for row in rows)

    dense = tmp_path / "dense.safetensors"
    codegemm.save_all(dense, {}, {"up.weight": matrix})
    assert "up.weight: [24, 64] at 2.5" in run("quantize", dense, tmp_path / "t.safetensors", "--config", "ternary32")
    assert codegemm.load(tmp_path / "t.safetensors").spec.name == "ternary32"


def test_a_format_that_is_not_there_any_more_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    codegemm.register_format(Ternary())
    try:
        formats.random_weight((4, 16), "ternary8+rotated").save(path)
    finally:
        codegemm.unregister_format("ternary")
    with pytest.raises(
        CheckpointError, match=r"format 'ternary' is not registered: .*; there are codebook, e8p, qtip, transformed"
    ):
        codegemm.load(path)
    with pytest.raises(ValueError, match="configuration 'ternary8': expected"):
        formats.parse("ternary8")


@pytest.mark.usefixtures("ternary")
def test_a_format_without_a_quantiser_says_so():
    for config, message in (
        ("ternary8", "config 'ternary8': the format ternary has no quantizer"),
        ("e8p3", "config 'e8p3': there is no quantizer for its residual"),
        ("m1v4g8+offsets", "no quantizer looks for offsets, terms and orders"),
        ("m1v4g8+ordered+rotated", "no quantizer looks for offsets, terms and orders"),
        ("e8p+rotated", "e8p rotates without being told"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            codegemm.quantize(np.ones((16, 64), np.float32), config)


def changed(weight=None, **changes):
    """The format with changes of its own and of its weight's class."""
    spec_type, config = type("OtherSpec", (Spec,), {}), type("OtherConfig", (), {})
    said = {"format_name": "other", "spec_type": spec_type, "tensor_names": ("codes",)} | (weight or {})
    return type("Other", (Ternary,), {"config": config, "weight": type("OtherWeight", (Weight,), said)} | changes)()


@pytest.mark.parametrize(
    ("format", "kind", "message"),
    [
        (Ternary(), ValueError, "format ternary is registered already; pass replace=True"),
        (changed(), ValueError, "'ternary8' is a configuration of the format 'ternary'"),
        (changed(examples=("ternary",)), ValueError, "it reads 'ternary' as None"),
        (changed(config=TernaryConfig), ValueError, "TernaryConfig is no class apart from TernaryConfig"),
        (changed(config=object), ValueError, "object is no class apart from CodebookConfig"),
        (changed(weight={"spec_type": Spec}), ValueError, "Spec is no class apart from CodebookSpec"),
        (changed({"tensor_names": ("a.b",)}), ValueError, "tensor_names .*, must be without dots"),
        (changed({"tensor_names": "codes"}), TypeError, "OtherWeight: tensor_names is 'codes', must be a tuple"),
        (changed({"format_name": None}), TypeError, "OtherWeight: format_name is None, must be a str"),
        (changed(syntax=None), TypeError, "format Other: syntax is None, must be a str"),
        (Ternary, TypeError, "must be an instance"),
        (3, TypeError, r"must be a codegemm\.Format"),
    ],
)
@pytest.mark.usefixtures("ternary")
def test_what_can_not_be_registered(format, kind, message):
    with pytest.raises(kind, match=message):
        codegemm.register_format(format)
    assert [each.name for each in formats.registered()] == ["codebook", "e8p", "qtip", "transformed", "ternary"]


def test_quantisers_are_of_registered_formats():
    with pytest.raises(TypeError, match=r"subclass of codegemm\.Quantizer"):
        codegemm.register_quantizer(Rounding)
    with pytest.raises(ValueError, match="format 'ternary': must be one of codebook, e8p, qtip, transformed"):
        codegemm.register_quantizer(Rounding())


def test_a_quantiser_takes_no_calibration_unless_it_says_so(rounding, rng, tmp_path):
    matrix, seen = rng.standard_normal((4, 16)).astype(np.float32), codegemm.Calibration.of(np.eye(16), 16)
    save_file({"a.weight": matrix}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="config 'ternary8': takes no calibration"):
        codegemm.quantize(matrix, "ternary8", calibration=seen)
    with pytest.raises(ValueError, match="config 'ternary8': takes no calibration"):
        codegemm.quantize_file(
            tmp_path / "m.safetensors", tmp_path / "out.safetensors", "ternary8", calibration={"a": seen}
        )


def test_the_cache_goes_by_the_quantiser(rounding, tmp_path, monkeypatch, rng):
    class Zeros(Rounding):
        def quantize(self, matrix, config, job):
            return super().quantize(0 * matrix, config, job)

    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path))
    matrix = rng.standard_normal((4, 16)).astype(np.float32)
    assert quantized(matrix, "ternary8", 0).dequantize().any()
    codegemm.register_quantizer(Zeros(), replace=True)
    assert not quantized(matrix, "ternary8", 0).dequantize().any()


def test_weights_of_a_format_that_left_still_multiply(rng):
    codegemm.register_format(Ternary())
    weight = formats.random_weight((4, 16), "ternary8")
    codegemm.unregister_format("ternary")
    x = rng.standard_normal((5, 16))
    assert np.allclose(codegemm.matmul(x, weight.T, kernel="dense"), x @ weight.dequantize().T, atol=1e-4)


class Biased(TernaryWeight):
    """With a tensor that may be missing."""

    tensor_names = ("signs3", "scales", "bias")

    def __init__(self, signs3, scales, bias=None):
        super().__init__(signs3, scales)
        self.bias = bias


def test_a_tensor_may_be_missing(tmp_path):
    codegemm.register_format(type("Format", (Ternary,), {"weight": Biased})())
    try:
        arrays = np.ones((4, 16), np.int8), np.ones((4, 2), np.float16)
        with_bias, without = Biased(*arrays, np.ones(4, np.float16)), Biased(*arrays)
        assert with_bias != without
        assert without != with_bias
        codegemm.save_all(tmp_path / "w.safetensors", {"with": with_bias, "without": without})
        assert codegemm.load_all(tmp_path / "w.safetensors") == {"with": with_bias, "without": without}
        others = {"plain": formats.random_weight((4, 16), "m1v4b4g8")}, {"plain.bias": np.ones(3)}
        codegemm.save_all(tmp_path / "o.safetensors", *others)
        assert codegemm.load_all(tmp_path / "o.safetensors") == others[0]
    finally:
        codegemm.unregister_format("ternary")


def test_a_spec_that_counts_groups_otherwise_is_refused(ternary):
    class Miscounted(TernaryWeight):
        @property
        def spec(self):
            return TernarySpec(*self.shape_, TernaryConfig(16))

        shape_ = (4, 16)

    weight = Miscounted(np.ones((4, 16), np.int8), np.ones((4, 2), np.float16))
    with pytest.raises(ValueError, match=r"core: its spec says scales of shape \(4, 1\), it has \(4, 2\)"):
        codegemm.TransformedWeight(weight, offsets=np.ones((4, 1), np.float16))


def test_entry_points_join(monkeypatch):
    entry = SimpleNamespace(name="ternary", value="other:Ternary", load=lambda: formats.registered() and Ternary)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [entry] if group == "codegemm.formats" else []
    )
    registry = formats.format._formats
    monkeypatch.setattr(registry, "_loaded", False)
    try:
        assert formats.parse("ternary8") == TernaryConfig(8)
    finally:
        codegemm.unregister_format("ternary")
