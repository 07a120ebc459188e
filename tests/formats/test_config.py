"""CodebookConfig: its text, its limits, equation 1 of the paper."""

import copy
import pickle
import re

import numpy as np
import pytest

from codegemm import CodebookConfig


@pytest.mark.parametrize(
    ("text", "bits"),
    [("m1v4", 2.005), ("m2v8", 2.008), ("m4v16", 2.020), ("m1v8g16", 2.002), ("m3v16g32", 2.012)],
)
def test_equation_one_gives_the_papers_values(text, bits):
    assert round(CodebookConfig.parse(text).bits_per_weight(4096, 4096), 3) == bits


def test_numpys_integers_are_integers():
    config = CodebookConfig(v=np.int64(4), m=np.uint8(1), b=8, g=np.int32(-1))
    assert config == CodebookConfig(v=4, m=1, b=8, g=-1)
    assert repr(config) == "CodebookConfig(v=4, m=1, b=8, g=-1, signs=False)"
    with pytest.raises(ValueError, match=r"v=4\.0: must be an integer"):
        CodebookConfig(v=4.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("m2v4g32",), "CodebookConfig('m2v4g32'): takes v=, m=, b=, g=; CodebookConfig.parse('m2v4g32') reads a text"),
        ((8, 2), "CodebookConfig(8, 2): takes v=, m=, b=, g=; CodebookConfig.parse('m2v8g128') reads a text"),
    ],
)
def test_fields_are_named(arguments, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        CodebookConfig(*arguments)
    with pytest.raises(TypeError, match="k"):
        CodebookConfig(k=1)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_copies_and_pickles(again):
    config = CodebookConfig(v=8, m=2, b=6, g=32)
    assert again(config) == config


def test_defaults_of_the_text():
    assert CodebookConfig.parse("m2v8") == CodebookConfig(v=8, m=2, b=8, g=-1)
    assert str(CodebookConfig(v=4, m=1, b=8, g=128)) == "m1v4g128"


@pytest.mark.parametrize("text", ["", "m1", "v4m1", "m1v4g", "m1v4g128x", "m1v4g0", "m0v4", "m1v17", "m9v4", "m1v4b17"])
def test_bad_text_is_named(text):
    with pytest.raises(ValueError, match=r"must be|expected"):
        CodebookConfig.parse(text)


def test_group_must_be_a_multiple_of_v():
    with pytest.raises(ValueError, match=r"g=12: must be -1 or a multiple of v=8"):
        CodebookConfig(v=8, m=1, b=8, g=12)


@pytest.mark.parametrize(
    ("shape", "what"), [((4, 10), "v=4"), ((4, 96), "g=64"), ((0, 64), "at least 1"), ((4, 0), "at least 1")]
)
def test_shapes_that_do_not_fit(shape, what):
    with pytest.raises(ValueError, match=what):
        CodebookConfig(v=4, m=1, b=8, g=64).bits_per_weight(*shape)
