"""What all CUDA kernels owe, in every form that they have: the emulator shows it."""

import copy
import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from emulator import cases, emulate, gpu
from emulator.cases import error
from support import errors, gpu_products

import codegemm
from codegemm import arrays, kernels_cu
from codegemm.baselines.cuda import lutgemm
from codegemm.baselines.cuda.aqlm import Aqlm
from codegemm.baselines.cuda.lutgemm import Lutgemm
from codegemm.baselines.cuda.qtip import Qtip
from codegemm.baselines.cuda.quip import EXACT_ROWS, Quip
from codegemm.devices import FIRST_GPU
from codegemm.engines.cuda import (
    Dequant,
    DequantDense,
    Psumbook,
    dequant_cut,
    dequant_fast,
    dequant_wide,
    dequant_wide_cut,
    psumbook,
    psumbook_cut,
)
from codegemm.engines.cuda.gpu import KNOWN, Gpu
from codegemm.engines.cuda.kernel import CudaKernel
from codegemm.engines.cuda.steps import Scratch, Steps
from codegemm.engines.cuda.transformed import CudaTransformed
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.formats.format import spec_of
from codegemm.kernel import Product
from codegemm.registry import refusal, registered
from codegemm.testing.truth import Truth

HOPPER = emulate.SMALL_GPU
AMPERE = replace(HOPPER, arch=80)  # whose products take the dequantising kernel's fast form, not that for Hopper


class Wide(Dequant):
    """The form for Hopper, also where the fast form is sooner."""

    def steps(self, product, gpu, scratch):
        return dequant_wide.steps(product, gpu, scratch)


@dataclass(frozen=True)
class Form:
    """A kernel and a product for which it takes one of its forms."""

    kernel: CudaKernel
    shape: tuple[int, int]
    config: str
    n: int
    parts: int = 1
    gpu: Gpu = HOPPER

    def __str__(self):
        return f"{self.kernel.name}-{self.config}-{self.n}"

    def operands(self, dtype, make_weight, rng):
        x = rng.standard_normal((self.n, self.shape[1])).astype(arrays.float_dtype(dtype))
        return make_weight(*self.shape, self.config, self.parts), x

    def product(self, dtype):
        return Product.of(spec_of(self.shape, self.config), self.n, arrays.float_dtype(dtype), np.float32)

    def multiply(self, weight, x, out_dtype=np.float32, **options):
        return emulate.multiply(self.kernel, weight, x, out_dtype, self.gpu, **options)[0]

    def limit(self, dtype):
        """Of its error."""
        around = isinstance(self.kernel, CudaTransformed)
        name = "transformed" if around and self.kernel.name != "lutgemm" else self.kernel.name
        if name == "dequant":
            return errors.of_dequant(CodebookConfig.parse(self.config).m, dtype)
        limits = errors.TOLERANCE[name]
        key = {"psumbook": self.n, "quip": self.n <= EXACT_ROWS}.get(name, dtype)
        return limits[key] if isinstance(limits, dict) else limits


FORMS = [
    *(Form(Psumbook(), (130, 640), "m1v4g128", n, 2) for n in (1, 2, 3)),
    *(Form(Dequant(), (130, 768), config, 5, 2, AMPERE) for config in ("m1v4g128", "m2v8g-1", "m1v3g-1")),
    *(Form(Wide(), (70, 1536), config, 40, 2) for config in ("m1v4g128", "m2v8g-1")),
    *(Form(Aqlm(), (20, 2400), config, 3) for config in ("m2v8g-1", "m1v8g-1", "m1v8b16g-1", "m1v16b16g-1")),
    *(Form(Lutgemm(), (130, 768), config, 3, 2) for config in ("q1g128", "q1v4g12")),
    Form(CudaTransformed(Lutgemm()), (130, 640), "q2g32", 2, 2),
    *(Form(Quip(), (112, 256), config, n) for config in ("e8p", "e8p3", "e8p4") for n in (3, 6)),
    *(Form(Qtip(), (96, 224), config, n) for config in ("qtip", "qtip3", "qtip4") for n in (3, 6)),
    Form(CudaTransformed(Psumbook()), (40, 96), "m1v4g24+rotated+offsets", 3),
]


def steps_of(case):
    form, dtype = case
    return form.kernel.decide(form.product(dtype), form.gpu)


def in_dtypes(*dtypes):
    """All forms, x in each of these, or of each form in one of them."""
    pairs = list(itertools.product(FORMS, dtypes)) if cases.ALL else list(zip(FORMS, itertools.cycle(dtypes)))
    return pytest.mark.parametrize("case", pairs, ids=lambda case: f"{case[0]}-{case[1]}")


@in_dtypes("float16")
def test_emulated_results_do_not_depend_on_the_order(case, compiled, make_weight, rng):
    form, dtype = case
    weight, x = form.operands(dtype, make_weight, rng)
    expected, [*_, report] = emulate.multiply(form.kernel, weight, x, gpu=form.gpu)
    joins = isinstance(form.kernel, Psumbook | Dequant) or form.kernel.name == "lutgemm"  # several splits of K
    assert ("atomic" in report.events) == joins
    for seed in range(2 if cases.ALL else 1):
        for order in emulate.ORDERS[1:]:
            assert np.array_equal(form.multiply(weight, x, order=order, seed=seed), expected), order


@in_dtypes("float16", "float32")
def test_emulated_nonfinite_x_stays_in_its_row(case, compiled, make_weight, rng):
    """A number that is none, anywhere in a row of x, makes none of all of that row of y and of no other."""
    form, dtype = case
    weight, x = form.operands(dtype, make_weight, rng)
    clean, row = form.multiply(weight, x), form.n // 2
    place = row, rng.integers(x.shape[1])
    # What kernels make fp16 of as it is, is infinite there.
    too_large = [7e4] if form.kernel.name in ("aqlm", "lutgemm") and dtype == "float32" else []
    for bad in (np.nan, np.inf, -np.inf, *too_large):
        x[place] = bad
        y = form.multiply(weight, x)
        assert not np.isfinite(y[row]).any(), bad
        assert np.array_equal(np.delete(y, row, 0), np.delete(clean, row, 0)), bad


@in_dtypes("float16", "bfloat16")
def test_emulated_output_in_the_dtype_of_x(case, compiled, make_weight, rng):
    """It is y in float32, rounded."""
    form, dtype = case
    weight, x = form.operands(dtype, make_weight, rng)
    narrow, wide = form.multiply(weight, x, out_dtype=x.dtype), form.multiply(weight, x)
    assert narrow.dtype == x.dtype
    assert np.array_equal(narrow, wide.astype(x.dtype))


RANGED = [
    *(Form(Psumbook(), (40, 512), "m2v4g64", n) for n in (1, 2, 4)),
    *(Form(Dequant(), (40, 512), config, n, gpu=AMPERE) for config, n in (("m2v4g64", 9), ("m1v4g64", 8))),
    *(Form(Wide(), (40, 512), config, 34) for config in ("m2v4g64", "m1v4g64")),
]


@pytest.mark.parametrize("size", ["large", "tiny", "mixed"])
@pytest.mark.parametrize(
    "case", [*itertools.product(RANGED, ("float16", "bfloat16", "float32"))], ids=lambda case: f"{case[0]}-{case[1]}"
)
def test_emulated_range_of_x(case, size, compiled, make_weight, rng):
    """Near the largest or the smallest numbers of its type, or of many magnitudes."""
    form, dtype = case
    weight, _ = form.operands(dtype, make_weight, rng)
    limits = np.finfo(np.float16) if dtype == "float16" else np.finfo(np.float32)
    large, tiny = float(limits.max) / 1e3, float(limits.tiny) * (64 if dtype == "float16" else 2**10)
    x = rng.uniform(-1, 1, (form.n, 512)) * {"large": large, "tiny": tiny, "mixed": 1.0}[size]
    if size == "mixed":
        x *= 10.0 ** rng.integers(-3, 3, x.shape)
    x = x.astype(arrays.float_dtype(dtype))
    assert error(form.multiply(weight, x), Truth(x, weight)) <= form.limit(dtype)


PREPARED = [form for form in FORMS if not isinstance(form.kernel, CudaTransformed)]


@pytest.mark.parametrize("form", [*PREPARED, Form(Aqlm(), (17, 2400), "m3v8b6g-1", 1)], ids=str)
def test_weights_are_prepared_where_they_are(form, emulated_gpu, make_weight, monkeypatch):
    """As on the host, but nothing goes through it; a copy is whole, and codes are restored where they are."""
    weight = make_weight(*form.shape, form.config, form.parts)
    here, moved = form.kernel.arrange(weight), weight.to("cuda")
    monkeypatch.setattr(gpu.Array, "get", lambda self: pytest.fail("a copy to the host"))
    there = form.kernel.arrange(moved)
    twin = copy.deepcopy(there)
    assert twin.numbers == there.numbers == here.numbers
    assert twin.arrays.keys() == there.arrays.keys() == here.arrays.keys()
    for name, array in here.arrays.items():
        assert twin.arrays[name] is not there.arrays[name]
        for other in (there.arrays[name], twin.arrays[name]):
            assert isinstance(other, gpu.Array)
            assert other.host.dtype == array.dtype
            assert np.array_equal(other.host, array)
    for name in form.kernel.rearranged:
        restored = form.kernel.restore(there, name)
        assert isinstance(restored, gpu.Array)
        assert restored.host.dtype == getattr(weight, name).dtype
        assert np.array_equal(restored.host, getattr(weight, name))


@pytest.mark.parametrize(
    ("name", "shape", "config", "n", "fewer"),
    [
        ("aqlm", (20, 2400), "m1v8g-1", 9, (4,)),
        ("lutgemm", (40, 96), "q2g16", 9, (4, 1)),
        ("quip", (48, 128), "e8p", 51, (50, 49, 48, 9, 8, 4, 1)),
        ("qtip", (64, 128), "qtip", 51, (50, 49, 48, 9, 8, 4, 1)),
        ("psumbook", (40, 96), "m1v4g24+rotated+offsets", 3, (1,)),
        ("dequant_dense", (40, 96), "m1v4g24+rotated", 65, (64, 1)),
        ("dequant_dense", (40, 96), "m2v8g-1+rotated", 90, (70, 20)),
        ("aqlm", (40, 96), "m2v8g-1+rotated", 90, (70, 20)),
    ],
)
@pytest.mark.parametrize("out_dtype", [np.float16, np.float32])
def test_a_captured_plan_for_many_rows_allocates_nothing_for_fewer(
    name, shape, config, n, fewer, out_dtype, emulated_gpu, make_weight, rng, monkeypatch
):
    """What it launches for any number of rows was said to be compiled; what the plan did not bind, a call binds."""
    weight, x = make_weight(*shape, config), rng.standard_normal((n, shape[1])).astype(np.float16)
    truth = x.astype(np.float64) @ weight.dequantize(np.float64).T
    weight, kernel = weight.to("cuda"), gpu_products.kernel_named(name, weight.spec)
    gpu.compiled.clear()
    plan = codegemm.plan(weight, n, x.dtype, name)
    bound = dict(plan.prepared.runs)
    bound_rows = {kernel.alike(Product.of(weight.spec, rows, x.dtype)).n for rows in kernel.batches(n)}
    assert {rows for rows, *_ in bound} == bound_rows
    operand, outs = gpu.aligned(x), {}
    for rows in (n, *fewer):
        outs[rows] = gpu.aligned(np.full((rows, shape[0]), np.nan, out_dtype))
    stream = emulated_gpu.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        for failing in ("empty", "zeros", "asarray"):
            monkeypatch.setattr(emulated_gpu, failing, lambda *shape: pytest.fail("an allocation in a capture"))
        for rows, out in outs.items():
            plan(operand[:rows], out=out)
        graph = stream.end_capture()
    graph.launch()
    for rows, out in outs.items():
        assert errors.error(out.host, truth[:rows]) <= 1e-3
    assert {key: run for key, run in plan.prepared.runs.items() if key[0] in bound_rows} == bound
    builds = kernel.builds(Product.of(weight.spec, n, x.dtype), weight.device)
    assert set(gpu.compiled.values()) == {(build.source, build.instance) for build in builds}


TURING = Gpu(75, 40, 65536, 65536, 1024)


def of(config, n=1, dtype=np.float16, parts=1):
    spec = spec_of((32, 1280), config)
    return Product.of(replace(spec, part_rows=(32 // parts,) * parts) if parts > 1 else spec, n, dtype)


@pytest.mark.parametrize(
    ("name", "product", "there", "reason"),
    [
        ("psumbook", of("m1v8b8g-1", 4), "h200", None),
        ("psumbook", of("m1v8b9g-1"), "h200", "b=9: its tables hold 2^b entries a position, b up to 8"),
        ("psumbook", of("m1v4", 5), "h200", "n=5: its tables hold up to 4 rows of x; more cost more lookups than "),
        ("psumbook", of("m1v4", dtype=np.float64), "h200", "x is float64: it takes float16, bfloat16, float32"),
        ("psumbook", of("m1v4"), "turing", "cuda:0 has compute capability 7.5: it needs 8.0 or later"),
        ("psumbook", of("e8p"), "h200", "it multiplies CodebookWeights"),
        ("dequant", of("m1v4g128", 128), "h200", None),
        ("dequant", of("m1v4g128", 129), "h200", "n=129: it multiplies up to 64 rows of x; dequant_dense is for more"),
        ("dequant", of("m1v4g128", 65, np.float32), "h200", "n=65: it multiplies up to 64 rows of x"),
        ("dequant", of("m1v8b16g-1", 65), "h200", "n=65: it multiplies up to 64 rows of x"),
        ("dequant", of("m1v4g128", 65), "a100", "n=65: it multiplies up to 64 rows of x"),
        ("aqlm", of("m2v8g64"), "h200", "g=64: AQLM has one scale a row, g=-1"),
        ("aqlm", of("m2v8g-1", parts=2), "h200", "2 concatenated parts: AQLM has one set of codebooks"),
        ("aqlm", of("m1v4g-1"), "h200", "v=4: AQLM's kernels read centroids of 8 or 16 weights"),
        ("aqlm", of("m1v4g-1", 7), "h200", "v=4: AQLM's kernels read"),  # a plan for more rows also runs few
        ("aqlm", of("m2v16g-1", 6), "h200", "m=2, v=16: AQLM's kernel for centroids of 16 weights has one codebook"),
        ("aqlm", of("m7v8g-1"), "h200", "need 238080 bytes of shared memory; a thread block has 232448"),
        ("aqlm", of("e8p"), "h200", "it multiplies CodebookWeights"),
        *(("aqlm", of(config), "h200", None) for config in ("m6v8g-1", "m8v8b7g-1", "m8v8b16g-1")),
        ("aqlm", of("m2v8g-1", 7), "h200", None),
        ("lutgemm", of("q1g128", 16), "h200", None),
        ("lutgemm", of("q1v4g4", 17), "h200", "n=17: it multiplies up to 16 rows of x, one at a time"),
        ("lutgemm", of("m1v8g128"), "h200", "m1v8g128: its codebook is not that of all signs, +1 and -1"),
        ("quip", of("e8p"), "h200", None),
        ("quip", of("m1v4"), "h200", "it multiplies E8PWeights"),
    ],
)
def test_what_is_refused(name, product, there, reason):
    [kernel] = [kernel for kernel in registered("cuda") if kernel.name == name]
    with gpu.emulated(KNOWN.get(there, TURING)):
        said = refusal(kernel, product, FIRST_GPU)
    assert (said is None) == (reason is None)
    assert reason is None or reason in said


@pytest.mark.parametrize(("n", "chains"), [(1, 0), (20, 0), (50, 0), (50, 1), (50, 2)])
def test_emulated_joins_add_splits_in_their_order(n, chains, make_weight, rng):
    """y has the bits of float32 sums that are added one after the other, whatever loads are in flight.

    chains: of the dequantising kernel's form for Hopper; 0: by the fast form.
    """
    weight, x = make_weight(96, 1536, "m1v4g128"), rng.standard_normal((n, 1536)).astype(np.float16)
    product, scratch = Product.of(weight.spec, n, x.dtype, np.float32), Scratch()
    if chains:
        fitting = dequant_wide_cut.candidates(weight.spec, n, HOPPER)
        cut = next(c for c in fitting if c.splits > 2 and c.chains == chains)
        launches = dequant_wide.launches(product, cut, HOPPER, scratch)
    else:
        cut = dequant_cut.cut_for(weight.spec, n, AMPERE)
        launches = [dequant_fast.launch(product, cut, AMPERE, scratch)]
    assert cut.splits > 2
    out = emulate.aligned(np.full((n, 96), np.nan, np.float32))
    workspace = emulate.new_workspace(scratch.end)
    steps = Steps(tuple(launches), scratch.end)
    emulate.run(steps, emulate.arranged(Dequant(), weight), x, out, workspace)
    total = np.zeros_like(out)
    for each in scratch.places["partial sums"].of(workspace):
        total += each
    assert np.array_equal(out, total)


def as_decided(form, product):
    return [form.kernel.decide(product, form.gpu)]


def several_tiles_and_splits(form, product):
    fitting = psumbook_cut.candidates(product.spec, product.n, form.gpu)
    cut = next(c for c in fitting if c.splits > 2 and c.units_per_split > 1)
    return [emulate.cut_steps(psumbook, product, cut)]


def several_chunks_of_x(form, product):
    """With one split of K and with several."""
    wide = isinstance(form.kernel, Wide)
    module = dequant_wide_cut if wide else dequant_cut
    cuts = [c for c in module.candidates(product.spec, product.n, form.gpu) if c.warps == 4]
    if wide:  # what it has of x has room for two chunks of two
        cuts = [c for c in cuts if c.chunk_blocks == c.split_blocks > 4]
    some = [next(c for c in cuts if (c.splits > 1) == split and c.split_blocks > 2) for split in (False, True)]
    module = dequant_wide if wide else dequant_fast
    return [emulate.cut_steps(module, product, replace(cut, chunk_blocks=2), form.gpu) for cut in some]


def several_tiles_of_one_split(form, product):
    layout = lutgemm.layout_of(product.spec)
    return [emulate.cut_steps(lutgemm, product, lutgemm.Cut(3, 1, 1, layout.runs, layout.ahead))]


BARRIER = r"sync_block|sync_warp"
WAIT = BARRIER + r"|wait_wgmma<\d>|wait_copies<S::ring - \d>|wait_for_sent"


@dataclass(frozen=True)
class Needs:
    """All barriers in some sources, of which there are so many: products of these forms, cut so."""

    files: tuple[str, ...]
    count: int
    forms: tuple[Form, ...]
    cuts: Callable = as_decided
    barriers: str = BARRIER

    @functools.cached_property
    def pattern(self):
        return re.compile(rf"(?:if \([^)]*\) )?ptx::(?:{self.barriers})\([^)]*\);")

    def places(self):
        """(file, place in its text) of every barrier in the sources."""
        paths = sorted({path for file in self.files for path in kernels_cu.FOLDER.glob(file)})
        return [(path.name, at.start()) for path in paths for at in self.pattern.finditer(path.read_text())]


ROTATED = "m1v4g32+rotated256+offsets"
NEEDS = [
    Needs(("psumbook*", "splits.cuh"), 4, (Form(Psumbook(), (130, 288), "m1v1g32", 1),), several_tiles_and_splits),
    Needs(
        ("dequant.cu", "dequant_[!wp]*", "splits.cuh"),
        7,
        (Form(Dequant(), (130, 768), "m1v4g128", 20, gpu=AMPERE),),
        several_chunks_of_x,
    ),
    Needs(("dequant_plain*",), 1, (Form(Dequant(), (130, 768), "m1v3g-1", 20, gpu=AMPERE),)),
    Needs(("dequant_wide.cu",), 9, (Form(Wide(), (70, 768), "m1v4g128", 33),), several_chunks_of_x, WAIT),
    Needs(("dequantize.cu",), 1, (Form(DequantDense(), (16, 512), "m1v4g128", 1),)),
    Needs(("aqlm*.cu*",), 2, (Form(Aqlm(), (20, 2400), "m2v8g-1", 1),)),  # two chunks of columns
    Needs(("lutgemm.cu",), 2, (Form(Lutgemm(), (130, 640), "q1g32", 1),), several_tiles_of_one_split),
    # Groups of threads, tiles after others.
    Needs(("quip.cu", "e8p.cuh", "rotate.cu"), 4, (Form(Quip(), (320, 512), "e8p", 1),)),
    Needs(("qtip.cu", "trellis.cuh"), 3, (Form(Qtip(), (320, 512), "qtip", 1),)),
    Needs(
        ("transformed.cu", "hadamard.cuh"),
        3,
        (
            Form(CudaTransformed(Psumbook()), (9, 256), ROTATED, 1),
            Form(CudaTransformed(DequantDense()), (9, 256), ROTATED, 65),
        ),
    ),
]


@pytest.mark.parametrize("needs", NEEDS, ids=lambda needs: needs.files[0])
def test_barriers_are_found(needs):
    assert len(needs.places()) == needs.count


@pytest.mark.parametrize(
    ("needs", "file", "at"),
    [
        pytest.param(needs, *place, id=f"{place[0]}-{place[1]}")
        for needs in NEEDS
        for place in cases.some(needs.places(), 3)
    ],
)
def test_emulated_kernel_without_a_barrier_fails(needs, file, at, tmp_path, make_weight, rng):
    """The emulator complains, in whatever order threads run; of one wait of wgmma, the product is wrong."""
    folder = tmp_path / "kernels"
    cases.changed(file, lambda text: text[:at] + needs.pattern.sub(";", text[at:], count=1), folder)

    def outcome(multiply, truth, most):
        try:
            return "right" if error(multiply(folder=folder), truth) <= most else "wrong"
        except emulate.EmulatorError as complaint:
            return str(complaint)

    outcomes = []
    for form in needs.forms:
        weight, x = form.operands("float16", make_weight, rng)
        truth, product, most = Truth(x, weight), form.product("float16"), form.limit("float16")
        for steps in needs.cuts(form, product):
            multiply = functools.partial(form.multiply, weight, x, steps=steps)
            assert error(multiply(order="shuffled"), truth) <= most
            outcomes.append(outcome(multiply, truth, most))
    told = re.compile("no barrier between|before it was written|has not released|all that other blocks send|wrong")
    assert any(map(told.search, outcomes)), outcomes
