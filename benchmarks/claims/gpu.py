"""Those of docs/gpu.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import counters, cuts
from benchmarks.claims import sources
from benchmarks.claims.claim import Claim, Computed
from benchmarks.gpu import PARTS
from benchmarks.tables import files
from benchmarks.targets import MAIN, dequantisation
from codegemm.engines.cuda.gpu import KNOWN
from codegemm.measuring import stopwatch
from codegemm.measuring.sources import LLAMA_3
from codegemm.prediction import predict

GPU = "docs/gpu.md"
H200 = KNOWN["h200"]
_WHOLE = ("8b", "70b")  # the models all of whose layers were measured
_FEW = (14336, 4096)
Found = Iterator[Any]
Shape = tuple[int, int]


def _cuts() -> Found:
    """For each kernel the products of which the best cut was picked, and all; how much longer the worst pick took."""
    for kernel in cuts.KERNELS:
        ratios = [ratio for _, ratio in sources.cuts(kernel)]
        yield from (ratios.count(1.0), len(ratios), 100 * (max(ratios) - 1))


def _estimate(name: str, config: str, n: int) -> Found:
    """Microseconds of a product, and its two largest parts."""
    seconds = cuts.parts(name, _FEW, config, n, H200)
    yield 1e6 * seconds.total()
    yield ", ".join(f"{part} {1e6 * each:.1f}" for part, each in seconds.most_common(2))


def _counted() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = files.read("nvidia-h200/counters.json")
    return found


def _wavefronts() -> Found:
    """In how many of the products the emulator's wavefronts are ncu's; how many percent less the GPU needs of four
    rows by `psumbook`."""
    ratios = {
        (row["kernel"], row["batch"]): row["wavefronts"] / row["emulated_wavefronts"]
        for row in _counted()
        if row["config"] == MAIN[0]
    }
    exact = [row for row in _counted() if row["wavefronts"] == row["emulated_wavefronts"]]
    yield f"{sources.in_words(len(exact))} of {sources.in_words(len(_counted()))}"
    yield 100 * (1 - ratios["psumbook", 4])


def _pipe() -> Found:
    """Percent of wavefronts more, the least and the most."""
    more = [100 * (row["pipe_wavefronts"] / row["wavefronts"] - 1) for row in _counted()]
    yield from (min(more), max(more))


def _faster_up_to() -> int:
    """Rows of x up to which `auto` is faster than dense in every layer, with codes of eight bits."""
    rows = sources.gpu_rows()
    slower = [
        n
        for n in sources.batches(rows)
        for config in sources.EIGHT_BITS
        if min(row["times_dense"] for row in sources.chosen(rows, config, n)) < 1
    ]
    return max(n for n in sources.batches(rows) if n < min(slower))


def _many_rows() -> Found:
    """For most rows of x and codes of eight bits: a dequantisation and dense in terms of `auto`, the least and the
    most."""
    ratios = []
    for model in _WHOLE:
        report = files.read(f"nvidia-h200/bench-{model}.json")
        most = max(sources.batches(report["rows"]))
        dense = {
            tuple(r["shape"]): r["seconds"] for r in report["rows"] if (r["kernel"], r["batch"]) == ("dense", most)
        }
        for config in sources.EIGHT_BITS:
            for row in sources.chosen(report["rows"], config, most):
                shape = tuple(row["shape"])
                slow = dense[shape] + dequantisation(config, shape, report["bandwidth"])
                ratios.append(slow / row["seconds"])
    yield from (min(ratios), max(ratios))


def _means(config: str, batches: range) -> list[float]:
    """Of `auto` in terms of dense, by batch."""
    rows = sources.gpu_rows(*_WHOLE)
    return [sources.auto_times_dense(rows, config, n) for n in sources.batches(rows) if n in batches]


def _ends(numbers: list[float]) -> Found:
    yield from (min(numbers), max(numbers))


def _predicted() -> float:
    """The model's time of `dequant_dense` and of `aqlm` in terms of the measured one, on Llama-3-8B's layers."""
    rows = sources.gpu_rows("8b")
    configs = [config for config in dict.fromkeys(row["config"] for row in rows) if config]
    model = {
        (each.kernel, each.config, each.shape, each.batch): each.seconds
        for each in predict(H200, LLAMA_3["8b"], configs, sources.batches(rows))
    }
    means = set()
    for kernel in ("dequant_dense", "aqlm"):
        its = [row for row in rows if row["kernel"] == kernel]
        ratios = [model[kernel, row["config"], tuple(row["shape"]), row["batch"]] / row["seconds"] for row in its]
        means.add(round(statistics.geometric_mean(ratios), 1))
    [mean] = means
    return mean


def _of(model: str, shapes: Sequence[Shape], configs: Sequence[str], batches: Sequence[int], terms: str) -> list[float]:
    """What targets found."""
    return [
        sources.target(model, shape, config, n, terms)[0] for shape in shapes for config in configs for n in batches
    ]


WIDE, TALL = (28672, 8192), (8192, 28672)
CLAIMS: tuple[Claim, ...] = (
    *(Computed(GPU, f"| {name} | {{:.0f}} |", lambda part=part: [part.seconds]) for name, part in PARTS.items()),
    Computed(
        GPU,
        "{} of them or more are captured in a CUDA graph that goes through whole rounds of copies of the weight, {} "
        "times as many bytes as the L2 cache has",
        lambda: [stopwatch._GRAPH_CALLS, sources.in_words(stopwatch._CACHE_FACTOR["cuda"])],
    ),
    Computed(
        GPU,
        "`psumbook` took the best of some thirty cuts in {} of {} products, at worst one that took {:.0f} % "
        "longer; `dequant` in {} of {}, at worst {:.0f} % longer; its form for Hopper in {} of {}, at worst {:.0f} % "
        "longer.",
        _cuts,
    ),
    Computed(
        GPU, "14336 x 4096 m1v4g128 N=1 psumbook {:.1f} us: {}, ...", lambda: _estimate("psumbook", "m1v4g128", 1)
    ),
    Computed(
        GPU, "14336 x 4096 m1v4g128 N=16 dequant {:.1f} us: {}, ...", lambda: _estimate("dequant", "m1v4g128", 16)
    ),
    Computed(
        GPU,
        "are exactly the emulator's in {} products (`counters.json`; of four rows of x by `psumbook` the GPU needs "
        "{:.1f} % fewer",
        _wavefronts,
    ),
    Computed(
        GPU, "What the pipe of shared memory serves beside them, {:.0f} to {:.0f} % more, is not told apart.", _pipe
    ),
    Computed(
        GPU,
        "28672 x 8192 by m1v4g128 at {:.0f} % of the copy bandwidth (53248 x 16384 at {:.0f} %) and 14336 x 4096 at "
        "{:.0f} %;",
        lambda: [sources.share(sources.gpu_rows(), shape, "m1v4g128") for shape in (WIDE, (53248, 16384), _FEW)],
    ),
    Computed(
        GPU,
        "by either configuration {:g} times `aqlm`, {:g} times dense (28672 x 8192, 8192 x 28672) and {:g} times dense "
        "(14336 x 4096).",
        lambda: [
            sources.met("70b", "times aqlm"),
            sources.met("70b", "times dense"),
            sources.met("8b", "N = 1:", "times dense"),
        ],
    ),
    Computed(
        GPU,
        "With codes of 8 bits `auto` is faster than dense in every layer up to {} rows of x.",
        lambda: [_faster_up_to()],
    ),
    Computed(
        GPU,
        "| 1 | 14336 x 4096 by m2v8g128, of the copy bandwidth | {:.0f} % | {:.0f} % |",
        lambda: [100 * each for each in reversed(sources.target("8b", _FEW, "m2v8g128", 1, "copy"))],
    ),
    Computed(
        GPU,
        "| 1 | 28672 x 8192 by m2v8g128; 8192 x 28672 | {:.0f} % | {:.0f} %; {:.0f} %, {:.0f} % |",
        lambda: [
            100 * each
            for each in (
                sources.target("70b", WIDE, "m2v8g128", 1, "copy")[1],
                *_of("70b", (WIDE,), ("m2v8g128",), (1,), "copy"),
                *_of("70b", (TALL,), MAIN, (1,), "copy"),
            )
        ],
    ),
    Computed(
        GPU,
        "| 1 | 8192 x 28672 times `quip` | {:g} | {:.2f}, {:.2f} |",
        lambda: [
            sources.target("70b", TALL, MAIN[0], 1, "quip")[1],
            *_of("70b", (TALL,), MAIN, (1,), "quip"),
        ],
    ),
    Computed(
        GPU,
        "`quip` reads {} the copy bandwidth there",
        lambda: [sources.part(sources.share(sources.gpu_rows(), TALL, "e8p") / 100)],
    ),
    Computed(
        GPU,
        "| 8, 16 | 14336 x 4096 times dense, m1v4g128; m2v8g128 | {:g}; {:g} | {:.1f}, {:.1f}; {:.1f}, {:.1f} |",
        lambda: [
            *(sources.target("8b", _FEW, config, 8, "dense")[1] for config in MAIN),
            *_of("8b", (_FEW,), MAIN, (8, 16), "dense"),
        ],
    ),
    Computed(
        GPU,
        "| 64 | `auto` times dense, m1v4g128, m2v8g-1, m2v8g128 | 1 | {:.2f}, {:.2f}, {:.2f} |",
        lambda: [_means(config, range(64, 65))[0] for config in ("m1v4g128", "m2v8g-1", "m2v8g128")],
    ),
    Computed(GPU, "| 128 | a dequantisation and dense | 1 | {:.2f} to {:.1f} |", _many_rows),
    Computed(
        GPU,
        "| 1 to 64 | codes of 16 bits (`m1v8b16g-1`), times dense | 1 | {:.2f} to {:.2f} |",
        lambda: _ends(_means("m1v8b16g-1", range(1, 65))),
    ),
    Computed(
        GPU,
        "| 16 to 64 | `quip` times dense | 1 | {:.2f} to {:.2f} |",
        lambda: reversed([*_ends(_means("e8p", range(16, 65)))]),
    ),
    Computed(GPU, "of `dequant_dense` and `aqlm` about {} of it.", lambda: [_predicted()]),
    Computed(
        GPU,
        "ncu's counts are of {} products",
        lambda: [f"{sources.in_words(len(_counted()))} of {sources.in_words(len(counters.PRODUCTS))}"],
    ),
)
