"""The ways through the CPU engine's sources: which one is taken, and what each looks up."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulator import cases
from support.cpu import product
from support.errors import error
from support.processes import python

from codegemm.baselines.cpu import lutgemm
from codegemm.engines.cpu import compiler, isa, library, psumbook
from codegemm.formats import random_weight
from codegemm.quantize import viterbi

FLAGS = {
    "amx": "avx2 fma f16c bmi2 avx512f avx512bw avx512dq avx512vl avx512_vnni avx512vbmi avx512_bf16 "
    "amx_bf16 amx_tile amx_int8",
    "bf16": "avx2 fma f16c bmi2 avx512f avx512bw avx512dq avx512vl avx512_vnni avx512vbmi avx512_bf16",
    "vbmi": "avx2 fma f16c bmi2 avx512f avx512bw avx512dq avx512vl avx512_vnni avx512vbmi",
    "vnni": "avx2 fma f16c bmi2 avx512f avx512bw avx512dq avx512vl avx512_vnni",
    "avx512": "avx2 fma f16c bmi2 avx512f avx512bw avx512dq avx512vl",
    "avx2": "sse2 avx avx2 fma f16c bmi2",
    "plain": "sse2 avx avx2",  # a processor without all of a path's instructions
}


@pytest.mark.parametrize(
    ("machine", "paths"),
    [*(("x86_64", list(FLAGS)[first:]) for first in range(len(FLAGS))),
     ("aarch64", ["neon", "plain"]), ("arm64", ["neon", "plain"]), ("riscv64", ["plain"])],
)  # fmt: skip
def test_the_fastest_that_a_processor_has(machine, paths, monkeypatch, fresh_engine):
    monkeypatch.delenv(isa.VARIABLE, raising=False)
    monkeypatch.setattr(isa, "_features", lambda: frozenset(FLAGS.get(paths[0], "").split()))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(isa, "_tiles_refused", lambda: None)
    assert isa.chosen().name == paths[0]
    assert [each.name for each in isa.available()] == paths


@pytest.mark.parametrize("wanted", ["neon", "AVX2", "sse"])
def test_a_path_that_is_not_here_is_refused(wanted, monkeypatch, fresh_engine):
    monkeypatch.setattr(isa, "_features", lambda: frozenset(FLAGS["avx2"].split()))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv(isa.VARIABLE, wanted)
    with pytest.raises(ValueError, match=f"CODEGEMM_CPU={wanted}: this processor has avx2, plain"):
        isa.chosen()


def test_tiles_that_the_system_does_not_permit(monkeypatch, fresh_engine):
    """The next instructions are taken; whoever asks for these hears why not."""
    monkeypatch.delenv(isa.VARIABLE, raising=False)
    monkeypatch.setattr(isa, "_features", lambda: frozenset((*FLAGS["amx"].split(), "hypervisor")))
    monkeypatch.setattr(
        isa, "_tiles_refused", lambda: "Linux does not permit the tiles of AMX: Operation not permitted"
    )
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert isa.chosen().name == "bf16"
    monkeypatch.setenv(isa.VARIABLE, "amx")
    library.forget()
    with pytest.raises(ValueError, match="CODEGEMM_CPU=amx: Linux does not permit the tiles of AMX: Operation not"):
        isa.chosen()


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="asks Linux")
def test_tiles_are_asked_for():
    """The request itself: where the processor has tiles it is granted, elsewhere there is a reason."""
    refused = isa._tiles_refused()
    assert refused is None or re.fullmatch(r"Linux does not permit the tiles of AMX: \w.*", refused)
    assert (refused is None) == ("amx_tile" in isa._features())


@pytest.mark.parametrize("name", [each.name for each in isa.available()])
def test_a_path_is_compiled_with_its_own_instructions(name, fresh_engine):
    [instructions] = [each for each in isa.ALL if each.name == name]
    path = compiler.build(psumbook.Psumbook.source, instructions)
    others = {compiler.build(psumbook.Psumbook.source, each) for each in isa.available()} - {path}
    assert len(others) == len(isa.available()) - 1


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of another processor")
@pytest.mark.parametrize("name", cases.some(["amx", "bf16", "vbmi", "avx512", "vnni"], 3))
def test_paths_that_this_processor_may_lack_compile(name):
    [instructions] = [each for each in isa.ALL if each.name == name]
    if instructions in isa.available():
        pytest.skip("it has them: what all products are compiled with")
    options = (*compiler.FLAGS, "-O0", *instructions.flags, f"-I{SOURCES}", "-S", "-o", os.devnull)
    products = (SOURCES / source for source in ("psumbook.cpp", "dequant.cpp", "transformed.cpp"))
    for source in (*products, lutgemm.SOURCE, viterbi.SOURCE):
        subprocess.run(["g++", *options, str(source)], check=True)


@pytest.mark.parametrize("outliers", [False, True])
def test_what_entries_of_bytes_cost(outliers, rng):
    """Of the output's norm, on a layer's shape; a few elements of x may be fifty times as large."""
    weight = random_weight((512, 4096), "m1v4g128", int(rng.integers(1 << 31)))
    x = rng.standard_normal((1, 4096)).astype(np.float32)
    if outliers:
        x[0, rng.choice(4096, 8, replace=False)] *= 50
    truth = x @ weight.dequantize(np.float64).T

    # Outliers are multiplied in float.
    assert (1e-6 if outliers else 1e-5) < error(product(weight, x, "psumbook"), truth) <= 1e-4
    assert 1e-3 < error(product(weight, x, "psumbook_fast"), truth) <= 1.5e-2


def test_an_unknown_path_is_an_error_where_it_is_met():
    script = "import numpy as np, codegemm; np.ones((1, 64), np.float32) @ codegemm.quantize(np.eye(64), 'm1v4b4').T"
    done = python("-c", script, env=os.environ | {isa.VARIABLE: "mmx"})
    assert done.returncode
    assert "CODEGEMM_CPU=mmx: this processor has" in done.stderr


HERE = Path(__file__).parent / "lookup"
EVERYWHERE = Path("/usr/include/simde")  # instructions that the processor may lack, in plain C++
SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
SOURCES = compiler.SOURCES


def look_up(folder, rng, *flags, compiler=("g++",), run=()):
    """Compile, which takes longer than to run, and run lookup.cpp; it says what differs."""
    program = folder / "lookup"
    sources = (f"-I{SOURCES}", str(HERE / "lookup.cpp"), "-o", str(program))
    subprocess.run([*compiler, "-std=c++17", *flags, *sources], check=True)
    seed = str(int(rng.integers(1 << 31)))
    done = subprocess.run([*run, str(program), seed], capture_output=True, text=True, check=False)
    assert not done.returncode, (seed, done.stdout, done.stderr)


@pytest.mark.parametrize("name", [each.name for each in isa.available()][: None if cases.ALL else 1])
def test_lookups_under_sanitizers(name, tmp_path, rng):
    [instructions] = [each for each in isa.ALL if each.name == name]
    look_up(tmp_path, rng, *instructions.flags, *SANITIZED)


@pytest.mark.skipif(not EVERYWHERE.is_dir(), reason="SIMD Everywhere is not installed (Debian: libsimde-dev)")
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("vbmi", ("-mavx2", "-include", str(HERE / "vbmi.hpp"))),
        ("avx512", ("-mavx2", "-include", str(HERE / "avx512.hpp"))),
        ("neon", ("-mssse3", "-D__ARM_NEON", f"-I{HERE / 'neon'}")),
    ],
)
def test_lookups_whose_instructions_are_imitated(name, flags, tmp_path, rng):
    look_up(tmp_path, rng, *flags)


@pytest.mark.skipif(
    not (shutil.which(CROSS) and shutil.which(QEMU)),
    reason="no cross-compiler and emulator (Debian: g++-aarch64-linux-gnu, qemu-user)",
)
def test_lookups_of_neon_on_an_emulated_processor(tmp_path, rng):
    [neon] = [each for each in isa.ALL if each.name == "neon"]
    look_up(tmp_path, rng, "-static", *neon.flags, compiler=(CROSS,), run=(QEMU,))
    flags = (*compiler.FLAGS, "-O0", *neon.flags, "-Wno-psabi", f"-I{SOURCES}", "-S", "-o", os.devnull)
    for source in (psumbook.SOURCE, lutgemm.SOURCE):
        subprocess.run([CROSS, *flags, str(source)], check=True)
