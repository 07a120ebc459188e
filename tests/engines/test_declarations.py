"""What Python reads in C++ and CUDA sources, and that what both have as functions is the same."""

import itertools

import numpy as np
import pytest
from emulator import emulate

from codegemm.baselines.cuda import aqlm, quip
from codegemm.engines import declarations
from codegemm.engines.cuda import dequant_cut, dequant_layout, dequant_wide_cut
from codegemm.formats.codebook import CodebookSpec
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.kernels_cu import FOLDER

SOURCE = """\
#include "elsewhere.hpp"
#include "system.hpp"
constexpr int one = 1, some = 3 * (one + lanes) << 2;  // constexpr int one = 2;
constexpr int half = lanes / 2, wide = 4, wide = 8;
enum class Kind : int32_t { low, high };
enum class Odd { low = 2, high };
struct Part {
    int first, end;  // of rows
};
struct Whole {
    const void* from;
    float scale;
    Part parts[one + 1];
    u64 place;
    static constexpr int size = 4;

    DEVICE Part at(int index) const {
        for (;;) { int i; }
        return {index, 1};
    }
};
struct Tasks {
    void (*run)(int task);
};
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "elsewhere.hpp").write_text("constexpr int lanes = 32;\n")
    (tmp_path / "source.cu").write_text(SOURCE)
    return tmp_path / "source.cu"


def test_what_is_declared_is_read(source):
    assert declarations.constant(source, "some") == 3 * 33 << 2
    assert declarations.enumeration(source, "Kind") == {"low": 0, "high": 1}
    part = np.dtype([("first", np.int32), ("end", np.int32)])
    fields = [("from", np.uint64), ("scale", np.float32), ("parts", part, 2), ("place", np.uint64)]
    assert np.dtype(declarations.structure(source, "Whole")) == np.dtype(fields, align=True)


@pytest.mark.parametrize("name", ["none", "size", "half", "wide"])
def test_other_constants_are_named(name, source):
    with pytest.raises(ValueError, match=rf"^source.cu: .*{name}"):
        declarations.constant(source, name)


def test_what_is_not_read_is_named(source):
    with pytest.raises(ValueError, match=r"^source.cu: Tasks has 'void \(\*run\)\(int task\)', which is not read"):
        declarations.structure(source, "Tasks")
    with pytest.raises(ValueError, match=r"^source.cu: Odd is not names alone"):
        declarations.enumeration(source, "Odd")


def specs(*axes):
    """Of all vector lengths, numbers of codebooks, bits and steps of a group (0: one scale a row)."""
    for v, m, b, steps in itertools.product(*axes):
        spec = CodebookSpec(64, 256 * v, CodebookConfig(v=v, m=m, b=b, g=4 * v * steps or -1), (64,))
        yield spec, f"{v}, {m}, {b}, {dequant_layout.phases(spec)}"


def of_dequant():
    for spec, values in specs((4, 8, 16), (1, 2, 3, 8), (1, 3, 8, 12), (0, 1, 2, 4)):
        for n, shared in itertools.product(dequant_cut.BATCHES, (False, True)):
            shape = f"DequantShape<{values}, {n}, Half, {str(shared).lower()}>"
            yield f"{shape}::most_threads == {32 * dequant_cut.most_warps(spec, n, shared)}"
            yield f"{shape}::row_blocks == {dequant_cut.warp_blocks(spec, n, shared)}"


def of_dequant_wide():
    for spec, values in specs((4, 8, 16), (1, 2), (2, 4, 8), (0, 4)):
        for chains in dequant_wide_cut.chains(spec):
            threads = 32 * dequant_wide_cut.most_warps(spec, chains)
            yield f"WideShape<{values}, 64, Half, {chains}>::most_threads == {threads}"


def of_aqlm():
    for spec, _ in specs((8, 16), (1, 2, 3), (8, 16), (0,)):
        c, vectors = spec.config, aqlm.lane_vectors(spec)
        yield f"Shape<{c.v}, {c.m}, u{8 * spec.code_bytes}, Half>::vectors == {vectors}"


CLAIMS = {
    "dequant.cu": of_dequant,
    "dequant_wide.cu": of_dequant_wide,
    "aqlm.cu": of_aqlm,
    "quip.cu": lambda: [f"together_of<{bits}> == {tiles}" for bits, tiles in quip._TOGETHER.items()],
}


@pytest.mark.parametrize("name", CLAIMS)
def test_functions_agree(name, tmp_path):
    claims = "".join(f"static_assert({claim});\n" for claim in CLAIMS[name]())
    (tmp_path / "claims.cpp").write_text(f'#include "{FOLDER}/{name}"\n{claims}')
    emulate._compile([*emulate._FLAGS, "-fsyntax-only", str(tmp_path / "claims.cpp")])
