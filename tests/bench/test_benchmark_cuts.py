"""The part `cuts`, and `make cubins` and the smoke test, on the emulated GPU."""

import json
import os

import numpy as np
import pytest
from emulator import cases, emulate

from benchmarks import cubins, cuts, gpu, smoke
from codegemm.engines.cuda import Psumbook, compiler, dequant_cut, dequant_wide_cut, psumbook_cut
from codegemm.engines.cuda.compiler import Build
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.formats.format import spec_of
from codegemm.kernel import Product
from codegemm.measuring import accuracy, stopwatch


def test_weights_are_fitted(rng):
    """Times made of the terms give their weights back; a term that would cost less than nothing costs nothing."""
    terms = rng.uniform(1, 10, (40, 3))
    assert np.allclose(cuts.least_squares(terms, terms @ [2.0, 0.5, 3.0]), [2, 0.5, 3])
    weights = cuts.least_squares(terms, terms @ [2.0, -0.5, 3.0])
    assert weights[1] == 0
    assert np.all(weights >= 0)


@pytest.mark.parametrize("module", [psumbook_cut, dequant_cut, dequant_wide_cut])
def test_every_term_has_a_weight(module):
    spec = spec_of((4096, 4096), "m1v4g128")
    cut = module.cut_for(spec, 4, KNOWN["h200"])
    terms = module.terms(cut, spec, KNOWN["h200"])
    assert terms.keys() == module.WEIGHTS.keys()
    assert module.estimate(cut, spec, KNOWN["h200"]) == pytest.approx(
        sum(terms[k] * w for k, w in module.WEIGHTS.items()) / KNOWN["h200"].clock
    )


def test_estimates_explained(capsys):
    cuts.main(["h200"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(cuts.PRODUCTS)
    assert all(" us: " in line for line in lines)
    cuts.main(["a100"])
    assert "dequant_wide" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "n"), [("psumbook", 2), ("dequant", 16), ("dequant_wide", 40)])
def test_a_product_is_cut_as_asked(name, n, make_weight, rng):
    """By every cut that is tried the same product, with the arrays of the kernel itself."""
    weight, x = make_weight(64, 512, "m1v4g128"), rng.standard_normal((n, 512)).astype(np.float16)
    module, truth = cuts.MODULES[name], accuracy.exact(weight, x)
    product = Product.of(weight.spec, n, x.dtype, np.float32)
    grids = set()
    for cut in cuts._chosen(module, weight.spec, n, emulate.SMALL_GPU)[::3]:
        kernel = cuts.Recut(name, cut)
        *_, launch = kernel.decide(product, emulate.SMALL_GPU).launches
        assert (launch.grid[0], launch.grid[-1]) == (len(cut.slices), cut.splits)
        assert (launch.threads, launch.shared_bytes) == (32 * cut.warps, cut.shared_bytes)
        assert accuracy.relative_error(emulate.multiply(kernel, weight, x)[0], truth) < 1e-3
        grids.add(launch.grid)
    assert len(grids) > 1


def test_cuts_share_the_kernels_arrays(emulated_gpu, make_weight):
    weight = make_weight(64, 512, "m1v4g128").to("cuda")
    kernels = [cuts.Recut("psumbook", cut) for cut in cuts._chosen(psumbook_cut, weight.spec, 1, emulate.SMALL_GPU)[:2]]
    first, second = [kernel.prepared(weight) for kernel in kernels]
    assert first.arrays is second.arrays
    assert first.runs is not second.runs


def test_cuts_are_timed(emulated_gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        cuts, "PRODUCTS", [("psumbook", (64, 512), "m1v4g128", 1), ("dequant", (64, 512), "m1v4g128", 16)]
    )
    monkeypatch.setattr(cuts, "_LIKELIEST", 2)
    monkeypatch.setattr(cuts, "_OTHERS", 1)
    for name, value in (("_GRAPH_CALLS", 1), ("_MIN_CALLS", 2), ("_MAX_CALLS", 2), ("_CACHE_FACTOR", {"cuda": 0.01})):
        monkeypatch.setattr(stopwatch, name, value)
    assert gpu.PARTS["cuts"].run(tmp_path / "cuts", 60)
    data = json.loads((tmp_path / "cuts.json").read_text())
    assert {row["kernel"] for row in data["cuts"]} == {"psumbook", "dequant"}
    assert sum(row["picked"] for row in data["cuts"]) == 2
    for row in data["cuts"]:
        assert 0 < row["quartiles"][0] <= row["seconds"] <= row["quartiles"][1]
        assert row["timed"] == "graph"
    assert data["weights"].keys() == {"psumbook", "dequant"}
    assert "picked" in capsys.readouterr().out


def test_smoke(emulated_gpu, monkeypatch, capsys):
    monkeypatch.setattr(smoke, "SHAPE", (64, 512))
    monkeypatch.setattr(smoke, "BATCHES", (1, 16))
    assert smoke.run(60)
    said = capsys.readouterr().out
    assert "psumbook" in said
    assert "WRONG" not in said
    monkeypatch.setattr(Psumbook, "bind", lambda *arguments: lambda *more: None)
    assert not smoke.run(60)
    assert "psumbook       WRONG" in capsys.readouterr().out
    assert not smoke.run(-1)
    assert all(line.endswith(" no time was left") for line in capsys.readouterr().out.splitlines())


def test_cubins_made_elsewhere_are_used(own_cache, monkeypatch, tmp_path, capsys):
    """Whatever version made them; and what is missing is compiled."""
    build = Build("spin.cu", "spin", 90)
    monkeypatch.setattr(cubins, "builds_for", lambda gpu: [build])
    assert cubins.main([str(tmp_path / "cubins"), "--arch", "90"]) == 0
    assert "1 cubins by NVRTC" in capsys.readouterr().out
    assert (tmp_path / "cubins" / "nvrtc.txt").read_text().strip() == ".".join(map(str, compiler.version()))
    cubin = build().read_bytes()
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", str(tmp_path / "another"))
    monkeypatch.setattr(compiler, "version", lambda: (99, 9))
    assert compiler.adopt(tmp_path / "cubins") == 1
    monkeypatch.setattr(compiler, "compile_instance", None)
    assert build().read_bytes() == cubin
    with pytest.raises(TypeError):  # nothing of that name was made
        Build("spin.cu", "spin", 80)()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_cubins_of_another_owner_are_copied(own_cache, tmp_path):
    build, folder = Build("spin.cu", "spin", 90), tmp_path / "cubins"
    folder.mkdir()
    assert cubins._compile(folder, build) is None
    for path in (folder, *folder.iterdir()):
        os.chown(path, 12345, 12345)
    own_cache.rename(tmp_path / "elsewhere")
    assert compiler.adopt(folder) == 1
    assert build().stat().st_uid == os.geteuid()


def test_what_a_gpu_loads_is_known_without_one():
    by_gpu = {name: cubins.builds_for(KNOWN[name]) for name in cases.some(["h200", "a100", "rtx5090"], 3)}
    builds = by_gpu["h200"]
    for name, each in by_gpu.items():
        assert len(each) == len(set(each)) > 100
        assert {build.arch for build in each} == {KNOWN[name].arch}
    assert {  # of the tests' own
        "psumbook<4, 2, 8, 2, 4, Float, 1>",
        "psumbook<8, 2, 8, 2, 1, Bfloat, 2>",
        "rotate_x<Half, Float, 1>",
        "DequantShape<4, 1, 8, 1, 16, Float, true>",
        "WideShape<4, 1, 8, 1, 64, Half, 1>",
    } <= {build.instance for build in builds}
    sources = "psumbook dequant dequant_plain dequant_wide dequantize aqlm lutgemm quip qtip rotate transformed"
    assert {f"{name}.cu" for name in sources.split()} <= {build.source for build in builds}


def test_architectures_are_checked(capsys):
    with pytest.raises(SystemExit):
        cubins.main(["somewhere", "--arch", "75"])
    assert "architecture '75': must be of" in capsys.readouterr().err
