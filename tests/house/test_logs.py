"""What the package says through `logging`, and what CODEGEMM_LOG prints of it."""

import logging
import os
import re

import numpy as np
import pytest
from support.processes import python

import codegemm
from codegemm import choice, tables
from codegemm.devices import CPU
from codegemm.formats import random_weight
from codegemm.tables import Choice

MULTIPLY = """
import numpy, codegemm
from codegemm.formats import random_weight
w = random_weight((64, 256), 'm1v4g128')
for _ in range(2):
    numpy.ones((2, 256), 'f') @ w.T
"""


QUICKLY = {"CXXFLAGS": "-O0", "CODEGEMM_CPU": "plain"}  # compiled


def printed(code=MULTIPLY, **variables):
    """On standard error, by a program that sets up no logging."""
    kept = {name: value for name, value in os.environ.items() if name != "CODEGEMM_LOG"}
    done = python("-c", code, env=kept | variables, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def told(caplog):
    [record] = [record for record in caplog.records if record.name == "codegemm.choice"]
    assert record.levelname == "INFO"
    return record.message


@pytest.fixture
def heard(caplog):
    caplog.set_level("INFO", "codegemm")
    choice._select.cache_clear()
    return caplog


@pytest.fixture
def weight():
    return random_weight((64, 256), "m1v4g128")


def test_a_choice_by_estimates_is_told_once(heard, weight):
    x = np.ones((2, 256), np.float32)
    for _ in range(3):
        x @ weight.T
    x @ random_weight((64, 256), "m1v4g128", 1).T
    start = r"2 rows of float32 times 64 x 256 m1v4g128 on cpu: (\w+), estimated: "
    found = re.fullmatch(start + r"(\w+) (\S+) us, (\w+) (\S+) us", told(heard))
    assert found
    taken, first, least, _, other = found.groups()
    assert taken == first
    assert float(least) <= float(other)


def test_a_choice_by_name(heard, weight):
    codegemm.matmul(np.ones(256, np.float16), weight.T, kernel="dequant")
    assert told(heard) == "1 row of float16 times 64 x 256 m1v4g128 on cpu: dequant, named"


def test_a_choice_by_what_was_tuned(heard, weight, tuned_cache):
    tables.save(CPU, [Choice("m1v4g128", (64, 256), (1, 4), "float32", "dequant")])
    choice.choose_anew()
    codegemm.plan(weight, 8)
    assert told(heard).endswith("on cpu: dequant, tuned with 1 to 4 rows times 64 x 256 m1v4g128")


def test_a_choice_by_what_was_measured():
    """Of a product with more rows, in another shape."""
    measured = [Choice("m1v4g128", (64, 512), (4, 4), "float16", "b")]
    product = choice.Lookup("m1v4g128", (64, 256), 8, "float16")
    assert choice.decide(product, {"a": 1e-6, "b": 2e-6}, (), measured) == (
        "b", "measured with 4 rows times 64 x 512 m1v4g128",
    )  # fmt: skip


def test_a_fast_choice(heard, make_weight):
    codegemm.plan(make_weight(512, 512, "m1v4g128"), 1, precision="fast")
    assert re.search(r": psumbook_fast, estimated: psumbook_fast \S+ us(, \w+ \S+ us)+$", told(heard))


def test_a_slow_build_is_seen_without_any_setting(tmp_path):
    """Once; and nothing else is."""
    code = "from codegemm.engines import builds; builds._SLOW_BUILD = 0" + MULTIPLY
    lines = printed(code, CODEGEMM_CACHE_DIR=str(tmp_path), **QUICKLY).splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(rf"compiled \w+\.cpp for \w+ in \d+\.\d s, kept in {tmp_path}/cpu", line)
    assert len(set(lines)) == len(lines)
    assert printed(CODEGEMM_CACHE_DIR=str(tmp_path), **QUICKLY) == ""


@pytest.mark.parametrize("level", ["info", "INFO", "debug"])
def test_the_variable_prints(level):
    lines = printed(CODEGEMM_LOG=level).splitlines()
    chosen = [line for line in lines if line.startswith("codegemm: 2 rows of float32 times 64 x 256 m1v4g128 on cpu: ")]
    assert len(chosen) == 1
    assert all(line.startswith(("codegemm: compiled", "codegemm: 2 rows")) for line in lines)


def test_the_variable_silences_builds(tmp_path):
    code = "from codegemm.engines import builds; builds._SLOW_BUILD = 0" + MULTIPLY
    assert printed(code, CODEGEMM_LOG="error", CODEGEMM_CACHE_DIR=str(tmp_path), **QUICKLY) == ""


def test_a_level_that_is_none_is_told():
    said = "codegemm: CODEGEMM_LOG=loud: must be one of debug, info, warning, error\n"
    assert printed("import codegemm", CODEGEMM_LOG="loud") == said


def test_no_handler_is_added_unasked():
    assert printed("import codegemm, logging; assert not logging.getLogger('codegemm').handlers") == ""
    assert not logging.getLogger("codegemm.choice").handlers
