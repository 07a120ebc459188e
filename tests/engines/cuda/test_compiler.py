"""How CUDA kernels are compiled and kept, by NVRTC: no GPU is needed."""

import re

import pytest

from codegemm import kernels_cu
from codegemm.engines import builds
from codegemm.engines.cuda import compiler, psumbook


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


@pytest.mark.parametrize(("slow", "level"), [(0.0, "WARNING"), (1e9, "INFO")])
def test_compilation_is_told_once(slow, level, own_cache, monkeypatch, caplog):
    """As a warning where it takes long."""
    caplog.set_level("INFO", "codegemm")
    monkeypatch.setattr(builds, "_SLOW_BUILD", slow)
    for _ in range(2):
        compiler.build(psumbook.SOURCE, "psumbook<4, 1, 2, 0, 1, Half, 1>", 80)
    [told] = caplog.records
    assert (told.name, told.levelname) == ("codegemm.engines.builds", level)
    assert re.fullmatch(
        rf"compiled psumbook<4, 1, 2, 0, 1, Half, 1> for sm_80 in \d+\.\d s, kept in {own_cache / 'cuda'}",
        told.message,
    )


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
