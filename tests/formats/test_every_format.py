"""Every registered format: its text, memory, files, rows, and the kernels that take it."""

from dataclasses import replace

import numpy as np
import pytest
from emulator import cases
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, format_checks

import codegemm
from codegemm import CodebookConfig, E8PConfig, QtipConfig, TransformedConfig, files, formats
from codegemm.formats.format import fitted
from codegemm.formats.transformed import OFFSETS, USUAL

EVERY = [(format, text) for format in formats.registered() for text in format.examples]
every = pytest.mark.parametrize(("format", "text"), EVERY, ids=[text for _, text in EVERY])


@every
def test_text_and_configuration_invert_each_other(format, text):
    format_checks.check_text(format, text)


@every
def test_copies_and_pickles(format, text):
    format_checks.check_memory(text)


@every
def test_rows_and_joining(format, text, tmp_path):
    format_checks.check_rows(text, tmp_path)


@every
def test_files(format, text, tmp_path):
    format_checks.check_file(text, tmp_path)


@every
def test_kernels_of_the_cpu(format, text, rng):
    format_checks.check_products(text, rng)


@pytest.mark.parametrize(
    "text",
    [
        text
        for format in formats.registered()
        for text in format.examples[:: 1 if cases.ALL else len(format.examples) - 1]
    ],
)
def test_kernels_of_a_gpu(text, rng):
    format_checks.check_emulated_products(text, rng)


@st.composite
def codebooks(draw):
    v = draw(st.integers(1, 16))
    g = draw(st.sampled_from((-1, v * draw(st.integers(1, 40)))))
    return CodebookConfig(v=v, m=draw(st.integers(1, 8)), b=draw(st.integers(1, 16)), g=g)


@st.composite
def signs(draw):
    v = draw(st.integers(1, 8))
    g = draw(st.sampled_from((-1, v * draw(st.integers(1, 40)))))
    return CodebookConfig(v=v, b=v, g=g, signs=True)


CORES = {
    "codebook": st.one_of(codebooks(), signs()),
    "e8p": st.builds(E8PConfig, st.sampled_from((2, 3, 4))),
    "qtip": st.builds(QtipConfig, st.sampled_from((2, 3, 4))),
}


@st.composite
def surroundings(draw):
    block, offsets = draw(st.sampled_from((0, USUAL, 1, 16, 4096))), draw(st.sampled_from(OFFSETS))
    ordered = draw(st.booleans())
    terms = draw(st.integers(1 if block or offsets or ordered else 2, 5))
    return TransformedConfig(draw(st.one_of(*CORES.values())), block, offsets, terms, ordered)


CONFIGS = CORES | {"transformed": surroundings()}


def test_the_names_of_every_format_are_drawn():
    assert CONFIGS.keys() == {format.name for format in formats.registered()}


@given(st.one_of(*CONFIGS.values()))
def test_every_name_is_read_as_what_it_names(config):
    assert formats.parse(str(config)) == config


@given(st.one_of(*CONFIGS.values()), st.integers(1, 5000))
def test_a_group_size_becomes_the_largest_that_divides_a_row(config, in_features):
    own = fitted(config, in_features)
    core = getattr(config, "core", config)
    if isinstance(core, CodebookConfig) and core.g > 0:
        sizes = [g for g in range(core.v, min(core.g, in_features) + 1, core.v) if in_features % g == 0]
        core = replace(core, g=max(sizes, default=core.g))
    assert own == (replace(config, core=core) if isinstance(config, TransformedConfig) else core)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m1", "configuration 'm1': expected m<codebooks>v.*e8p.*rotated"),
        ("e8p5", "e8p of 5 bits: must be of 2, 3, 4"),
        ("qtip1", "qtip of 1 bits: must be of 2, 3, 4"),
        ("m9v4", "m=9"),
        ("m1v4+turned", r"behind m1v4 may come \+ordered, \+rotated\[<block>\], \+offsets"),
        ("m1v4+offsets+rotated", "behind m1v4 may come"),
        ("m1v4+rotated0", "block of a rotation must be at least 1"),
        ("m1v4+terms1", "terms must be at least 2"),
        ("q0g128", "there must be at least 1 plane of signs"),
        ("q2v9g9", "v=9, b=9: a codebook of signs has m=1, b=v, up to 8"),
        ("q2g128+terms2", "its 2 planes are its terms, and there are no others"),
        ("+rotated", r"configuration '\+rotated': there is nothing for it to stand around"),
    ],
)
def test_what_no_format_reads_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        formats.parse(text)
    with pytest.raises(TypeError, match="config 3: must be of a registered format, or a configuration's text"):
        formats.parse(3)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_files_of_former_versions(version, tmp_path):
    """Written by the first code of their version, with the dense matrices that it made of them."""
    path = ROOT / "tests" / "data" / "files" / f"version{version}.safetensors"
    with np.load(path.with_suffix(".npz")) as dense:
        weights = codegemm.load_all(path)
        assert weights.keys() == dense.keys()
        assert all(np.array_equal(weight.dequantize(), dense[name]) for name, weight in weights.items())
    old = files.File(path)
    again = tmp_path / "again.safetensors"
    codegemm.save_all(again, weights, {"norm": old.tensors["norm"]}, {"note": "kept"})
    new = files.File(again)
    assert new.metadata == old.metadata
    assert {name: str(tensor) for name, tensor in new.tensors.items()} == {n: str(t) for n, t in old.tensors.items()}
    assert all(np.array_equal(tensor.data, old.tensors[name].data) for name, tensor in new.tensors.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"core": "m1v4+added", "block": 4}, "core 'm1v4g-1[+]added': must be of another format"),
        ({"offsets": "odd"}, "offsets 'odd': must be one of '', 'scaled', 'added'"),
        ({"block": True}, "block=True: must be an integer of at least -1"),
        ({"terms": "2"}, "terms='2': must be an integer of at least 1"),
    ],
)
def test_configurations_of_surroundings_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        TransformedConfig(**{"core": "m1v4", **arguments})
    assert TransformedConfig("m1v4", USUAL) == formats.parse("m1v4+rotated")
