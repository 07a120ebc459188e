"""The CUDA Psumbook kernel as NVRTC compiles it for every architecture: no GPU is needed."""

import numpy as np
import pytest
from emulator import cases
from support import sass

from codegemm import kernels_cu
from codegemm.config import CodebookConfig
from codegemm.engines import builds
from codegemm.engines.cuda import compiler, psumbook
from codegemm.engines.cuda.gpu import Gpu
from codegemm.engines.cuda.psumbook_cut import MAX_WARPS, cut_for
from codegemm.engines.cuda.steps import X_TYPES, Scratch
from codegemm.formats.codebook import CodebookSpec
from codegemm.kernel import Product

AXES = {
    "v": (4, 8, 16, 1, 3, 5, 12),
    "m": (1, 2, 3, 4, 8),
    "b": (8, 7, 5, 4, 2),
    "phases": (1, 2, 4, 8, 16, 32, 0),
    "n": (1, 2, 4),
    "x": tuple(X_TYPES.values()),
    "rows": (2, 1),
    "arch": compiler.ARCHITECTURES,
}


def allowed(case):
    """Two position rows only where a cut may choose them."""
    return not (case.get("rows") == 2 and (case.get("n") == 4 or case.get("phases", 0) > 8))


def instances():
    """Of the template, with their architectures: every pair of values of every two axes."""
    chosen = ([case[name] for name in AXES] for case in cases.covering(AXES, 700 if cases.ALL else 0, allowed))
    return list(dict.fromkeys((f"psumbook<{', '.join(map(str, values))}>", arch) for *values, arch in chosen))


INSTANCES = instances()
KERNELS = [(psumbook.SOURCE, *key) for key in INSTANCES]


@pytest.mark.parametrize(("instance", "arch"), INSTANCES)
def test_compiled_kernels_keep_to_their_budgets(instance, arch, cubins):
    sass.check_budgets(cubins[psumbook.SOURCE, instance, arch], 32 * MAX_WARPS)


@pytest.mark.parametrize("g", [128, 256, -1])
@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize(("v", "arch"), [(4, 80), (4, 90), (4, 100), (4, 120), (8, 90), (16, 90)])
def test_compiled_loop_has_at_most_four_instructions_a_lookup(v, arch, m, g, tmp_path):
    spec = CodebookSpec(28672, 8192, CodebookConfig(v=v, m=m, b=8, g=g), (28672,))
    h200 = Gpu(90, 132, shared_per_block=232448, shared_per_multiprocessor=233472, threads_per_multiprocessor=2048)
    cut = cut_for(spec, 1, h200)
    launch = psumbook.launch(Product.of(spec, 1, np.float16), cut, h200, Scratch())
    lookups = 32 * cut.rows
    loop = sass.smallest_loop(sass.compile_one(launch.source, launch.instance, arch, tmp_path), "LDS", lookups)
    # Where there are clusters, what the last unit does is in the loop, too: it sends sums in place of storing them.
    sends = arch >= 90
    assert lookups <= loop["PRMT"] <= lookups + 2 * sends
    assert loop.total() <= 4 * lookups + 28 * sends, loop


def test_entry_names():
    assert compiler.entry_name("psumbook<4, 1, 8, 1, 1, Half, 2>") == "codegemm_psumbook_4_1_8_1_1_Half_2"


def test_cubins_are_kept(own_cache, tmp_path, monkeypatch):
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "one.cu").write_text(
        '#include "two.cuh"\n#define ENTRY(name, ...) extern "C" __global__ void name() {}\n'
    )
    (folder / "two.cuh").write_text("// first")
    calls = []
    real = compiler.compile_instance
    monkeypatch.setattr(compiler, "compile_instance", lambda *a, **k: calls.append(a) or real(*a, **k))
    first = compiler.build("one.cu", "one", 80, folder)
    assert compiler.build("one.cu", "one", 80, folder) == first
    assert len(calls) == 1
    # Another architecture, another instance and a change in an included file are other kernels.
    assert compiler.build("one.cu", "one", 90, folder) != first
    assert compiler.build("one.cu", "another", 80, folder) != first
    (folder / "two.cuh").write_text("// second")
    assert compiler.build("one.cu", "one", 80, folder) != first
    assert len(calls) == 4
    # A damaged file is compiled again.
    first.write_bytes(b"")
    (folder / "two.cuh").write_text("// first")
    assert compiler.build("one.cu", "one", 80, folder).stat().st_size > 100
    assert len(calls) == 5


def test_slow_compilation_is_told(own_cache, monkeypatch, capsys):
    monkeypatch.setattr(builds, "_SLOW_BUILD", 0.0)
    compiler.build(psumbook.SOURCE, "psumbook<4, 1, 2, 0, 1, Half, 1>", 80)
    said = capsys.readouterr().err
    assert said.startswith("codegemm: compiled psumbook<4, 1, 2, 0, 1, Half, 1> for sm_80 in ")
    compiler.build(psumbook.SOURCE, "psumbook<4, 1, 2, 0, 1, Half, 1>", 80)
    assert capsys.readouterr().err == ""


def test_errors_show_what_the_compiler_said(own_cache):
    with pytest.raises(builds.CompilerError, match=r"NVRTC 1\d\.\d+ could not compile psumbook<0> for sm_90:\n.*error"):
        compiler.build(psumbook.SOURCE, "psumbook<0>", 90)
    assert not list(own_cache.rglob("*.cubin"))


def test_sources_include_only_each_other():
    """NVRTC is given no folder: a header that is not in the folder would be missing on some machines."""
    names = {path.name for path in kernels_cu.FOLDER.glob("*.cu*")} | {"emulator.hpp"}
    for path in kernels_cu.FOLDER.glob("*.cu*"):
        for line in path.read_text().splitlines():
            if line.startswith("#include"):
                assert line.split('"')[1] in names, (path.name, line)
