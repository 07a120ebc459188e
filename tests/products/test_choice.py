"""What `auto` takes: the pure function, and the tables it looks up."""

import json
import platform
from dataclasses import replace

import numpy as np
import pytest

import codegemm
from codegemm import Product, arrays, cache, products, registry, tables
from codegemm.choice import Lookup, choose, choose_anew, select
from codegemm.devices import CPU, Device
from codegemm.engines.cpu import costs, isa, library
from codegemm.engines.cpu import machine as processor
from codegemm.engines.cuda import machine as gpus
from codegemm.formats.format import spec_of
from codegemm.tables import Choice

GPU = Device("cuda:0")
PRODUCT = Lookup("m1v4g128", (4096, 1024), 4, "float16")
ESTIMATES = {"slow": 3.0, "fast": 1.0, "other": 2.0}


def choice(kernel, batches=(4, 4), shape=PRODUCT.shape, dtype="float16", weights="m1v4g128"):
    return Choice(weights, shape, batches, dtype, kernel)


def test_the_least_estimate_where_nothing_was_measured():
    assert choose(PRODUCT, ESTIMATES) == "fast"


def test_what_was_tuned_counts_most():
    assert choose(PRODUCT, ESTIMATES, [choice("slow")], [choice("other")]) == "slow"
    assert choose(PRODUCT, ESTIMATES, [], [choice("other")]) == "other"


@pytest.mark.parametrize(
    "other",
    [{"weights": "m2v8g128"}, {"shape": (1024, 4096)}, {"dtype": "bfloat16"}, {"batches": (9, 9)}, {"batches": (1, 1)},
     {"kernel": "gone"}],
)  # fmt: skip
def test_what_was_tuned_for_another_product_does_not_count(other):
    assert choose(PRODUCT, ESTIMATES, [replace(choice("slow"), **other)], [choice("other")]) == "other"


@pytest.mark.parametrize(
    ("n", "kernel"), [(1, "slow"), (2, "slow"), (3, "slow"), (4, "other"), (16, "other"), (32, "other"), (33, "fast")]
)
def test_the_nearest_tuned_batch(n, kernel):
    """In ratio: 2 is as near to 1 as to 4 and takes the smaller; 3 would be as near to 2 as to 4.5."""
    tuned = [choice("slow", (1, 1)), choice("other", (4, 4)), choice("other", (16, 16)), choice("slow", (2, 2))]
    product = replace(PRODUCT, n=n)
    if n == 3:
        tuned[1] = choice("other", (5, 5))
    assert choose(product, ESTIMATES, tuned) == kernel
    assert choose(product, ESTIMATES, tuned[::-1]) == kernel


def test_crossovers_are_of_the_same_shape_or_the_nearest_size():
    measured = [
        choice("slow", (1, 8), (1024, 4096)),
        choice("other", (1, 8), (4096, 1024)),
        choice("slow", (1, 8), (4096, 2048)),
    ]
    assert choose(PRODUCT, ESTIMATES, [], measured) == "other"
    assert choose(replace(PRODUCT, shape=(4096, 1500)), ESTIMATES, [], measured) == "slow"
    assert choose(replace(PRODUCT, shape=(8, 8)), ESTIMATES, [], measured[1:]) == "other"
    assert choose(replace(PRODUCT, dtype="bfloat16"), ESTIMATES, [], measured) == "other"
    assert choose(replace(PRODUCT, dtype="float32"), ESTIMATES, [], measured) == "fast"
    assert choose(replace(PRODUCT, n=16), ESTIMATES, [], measured) == "other"
    assert choose(replace(PRODUCT, n=17), ESTIMATES, [], measured) == "fast"


def test_a_group_as_long_as_a_row_is_the_row(make_weight):
    assert spec_of((16, 128), "m1v4g128") == make_weight(16, 128, "m1v4g128").spec


TUNED = Choice("m1v4g128", (384, 384), (1, 1), "float32", "dequant")


def decided(weight):
    """The kernel of products of one row, which is remembered."""
    return products._chosen(weight, 1, np.dtype(np.float32), "auto", "full").kernel.name


def test_auto_looks_up_what_was_tuned(tuned_cache, make_weight):
    weight = make_weight(384, 384, "m1v4g128")
    assert codegemm.plan(weight, 1).kernel.name == decided(weight) == "psumbook"
    place = tables.save(CPU, [TUNED])
    choose_anew()
    assert codegemm.plan(weight, 1).kernel.name == decided(weight) == "dequant"
    assert codegemm.plan(weight, 1, np.float16).kernel.name == "psumbook"
    assert codegemm.plan(weight, 2).kernel.name == "dequant"
    assert place.parent == tuned_cache


@pytest.fixture
def two_instruction_sets(monkeypatch, fresh_engine):
    """A processor that has AVX2 and, as every other, plain code, with which work takes the same time; `auto` compiles
    nothing for either."""
    monkeypatch.setattr(isa, "_features", lambda: frozenset({"avx2", "fma", "f16c", "bmi2"}))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    alike = dict.fromkeys(("avx2", "plain"), costs.table()["avx2"])
    monkeypatch.setattr(costs, "table", lambda: alike)
    monkeypatch.delenv(isa.VARIABLE, raising=False)


def test_what_was_tuned_counts_for_its_instruction_set(two_instruction_sets, tuned_cache, make_weight, monkeypatch):
    """A product decided under another one is decided anew, and again when that is back."""
    weight = make_weight(384, 384, "m1v4g128")
    tables.save(CPU, [TUNED])
    choose_anew()
    for path, found, kernel in (
        ("", (TUNED,), "dequant"), ("plain", (), "psumbook"), ("avx2", (TUNED,), "dequant"), ("", (TUNED,), "dequant"),
    ):  # fmt: skip
        monkeypatch.setenv(isa.VARIABLE, path)
        library.forget()
        assert (tables.tuned(CPU), decided(weight)) == (found, kernel), path
        assert codegemm.plan(weight, 1).kernel.name == kernel


def test_estimates_are_an_instruction_sets_too(two_instruction_sets, make_weight, monkeypatch):
    """Without AVX2 entries of bytes serve one row of x: two rows share words, which cost more."""
    weight = make_weight(4096, 512, "m1v4g128")
    times = {}
    for name in ("avx2", "plain"):
        monkeypatch.setenv(isa.VARIABLE, name)
        library.forget()
        kernel = codegemm.plan(weight, 2, kernel="psumbook").kernel
        times[name] = kernel.estimate(Product.of(weight.spec, 2, np.float32), CPU)
    assert times["avx2"] < times["plain"]


@pytest.mark.parametrize(("machine", "device"), [(processor, CPU), (gpus, GPU)])
def test_tables_are_of_an_engines_own_python(machine, device, monkeypatch, tmp_path):
    """What decides how a product is cut is as much a part of it as what is compiled."""
    monkeypatch.setattr(machine, "identity", lambda device: ("made up",))
    own = machine.files()
    folders = {path.parent.name for path in own}
    assert {"engines", device.engine} <= folders
    names = {path.name for path in own}
    assert names >= {"kernel.py", "machine.py", "psumbook.py", "dequant.py", "aqlm.py", "transformed.py"}
    assert any(path.suffix != ".py" for path in own)
    assert len(own) == len(set(own))
    assert all(path.is_file() for path in own)
    path = tmp_path / "psumbook.py"
    monkeypatch.setattr(machine, "files", lambda: [path])
    keys = []
    for source in ("planes = 2", "planes = 1", "planes = 2"):
        path.write_text(source)
        tables.forget()
        keys.append(tables.machine_key(device))
    assert keys[0] == keys[2] != keys[1]
    tables.forget()


def test_each_engine_has_tables_of_its_own(monkeypatch):
    for machine in (processor, gpus):
        monkeypatch.setattr(machine, "identity", lambda device: (device,))
    keys = [tables.machine_key(device) for device in (CPU, GPU, Device("cuda:1"), GPU)]
    assert keys[1] == keys[3]
    assert len(set(keys)) == 3


def test_choices_replace_those_for_the_same(tuned_cache, monkeypatch):
    other, changed = replace(TUNED, batches=(2, 2)), replace(TUNED, kernel="psumbook")
    tables.save(CPU, [TUNED, other])
    tables.save(CPU, [changed])
    assert set(tables.tuned(CPU)) == {changed, other}
    assert len(list(tuned_cache.iterdir())) == 1
    monkeypatch.setattr(cache, "KINDS", ("tuned",))
    assert cache.usage()[0] == 1


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"weights": "m1v4"}]', '{"a": 1}', "[null]"])
def test_a_damaged_table_is_a_miss(content, tuned_cache):
    """Both a file that isn't what its name says and one that never was right."""
    place = tables.save(CPU, [TUNED])
    place.write_text(content)
    tables.forget()
    assert tables.tuned(CPU) == ()
    key = place.name.partition("-")[0]
    cache.store("tuned", key, ".json", lambda path: path.write_text(content) and None)
    tables.forget()
    assert tables.tuned(CPU) == ()


def test_another_version_finds_nothing(tuned_cache, monkeypatch, tmp_path):
    tables.save(CPU, [TUNED])
    (tmp_path / "other.py").write_text("")
    name, instructions = processor.identity(CPU)
    for place, attribute, value in (
        (tables, "__version__", "0"),
        (processor, "files", lambda: [tmp_path / "other.py"]),
        (processor, "identity", lambda device: ("another processor", instructions)),
        (processor, "identity", lambda device: (name, "other instructions")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, attribute, value)
            tables.forget()
            assert tables.tuned(CPU) == ()
    tables.forget()
    assert len(tables.tuned(CPU)) == 1


def test_no_cache_is_no_table(tuned_cache, monkeypatch, make_weight):
    monkeypatch.setenv("CODEGEMM_CACHE_DIR", "/proc/nowhere")
    choose_anew()
    assert tables.tuned(CPU) == ()


def test_crossovers_of_an_architecture(tmp_path):
    record = {"weights": "m1v4g128", "shape": [8, 16], "batches": [1, 4], "dtype": "float16", "kernel": "psumbook"}
    path = tmp_path / "crossovers.json"
    path.write_text(json.dumps({"90": [record]}))
    assert tables.crossovers(90, path) == (Choice("m1v4g128", (8, 16), (1, 4), "float16", "psumbook"),)
    assert tables.crossovers(80, path) == ()
    assert tables.crossovers(90, tmp_path / "none.json") == ()


def test_auto_looks_up_crossovers_on_a_gpu(emulated_gpu, make_weight, monkeypatch):
    """The estimate would have been another; on the processor it counts alone."""
    weight = make_weight(256, 512, "m1v4g128")
    product = Product.of(weight.spec, 1, np.float16)
    usable = [k for k in registry.registered("cuda") if k.automatic and not registry.refusal(k, product, GPU)]
    assert usable
    estimated = select(product, GPU).name
    other = next((k.name for k in usable if k.name != estimated), None)
    if other is None:
        pytest.skip("one automatic kernel only")
    measured = (Choice("m1v4g128", (256, 512), (1, 1), "float16", other),)
    monkeypatch.setattr(tables, "crossovers", lambda arch: measured if arch == 90 else ())
    registry.changed()
    assert select(product, GPU).name == other


def test_auto_rounds_weights_to_bfloat16_for_many_rows_only(emulated_gpu, make_weight, monkeypatch):
    """Even where that was measured to be the fastest."""
    spec = make_weight(256, 512, "m1v4g128").spec
    measured = (Choice("m1v4g128", (256, 512), (1, 128), "float16", "dequant_dense"),)
    monkeypatch.setattr(tables, "crossovers", lambda arch: measured)
    few, more = (Product.of(spec, n, arrays.bfloat16()) for n in (64, 65))
    assert select(few, GPU).name != "dequant_dense"
    assert select(more, GPU).name == "dequant_dense"
    assert select(Product.of(spec, 4, np.float16), GPU).name == "dequant_dense"
    assert select(few, GPU, "dequant_dense").name == "dequant_dense"
