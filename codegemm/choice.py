"""Which kernel a product gets: the one that is named, or the one that was measured or is estimated to be fastest."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import NamedTuple

from codegemm import registry, tables
from codegemm.devices import CPU, Device
from codegemm.engines.cpu import isa
from codegemm.engines.cuda.gpu import gpu_of
from codegemm.errors import KernelError
from codegemm.formats.format import core_of
from codegemm.kernel import Kernel, Product
from codegemm.registry import PRECISIONS, kernel_for, refusal, registered
from codegemm.reporting import by, counted, format_time
from codegemm.tables import Choice

REACH = 2.0  # a measured batch counts for batches up to so many times larger or smaller

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lookup:
    """What the tables are asked for: n rows of x in `dtype` times a weight of a shape whose configuration is `weights`.

    core: the product with its core where it has one: what was measured for that counts if nothing was for itself.
    """

    weights: str
    shape: tuple[int, int]
    n: int
    dtype: str
    core: Lookup | None = None

    def choices(self, tuned: Iterable[Choice], crossovers: Iterable[Choice]) -> tuple[list[Choice], list[Choice]]:
        """Those tuned and those measured that count for this configuration and batch."""
        near = [c for c in tuned if (c.shape, c.dtype) == (self.shape, self.dtype) and self._fits(c)]
        alike = [c for c in crossovers if c.dtype.removeprefix("b") == self.dtype.removeprefix("b") and self._fits(c)]
        return near, alike

    def _fits(self, choice: Choice) -> bool:
        return choice.weights == self.weights and choice.distance(self.n) <= REACH


def select(product: Product, device: Device, name: str = "auto", precision: str = "full") -> Kernel:
    """The kernel for a product with a weight on `device`, whatever y's dtype.

    `auto` takes an automatic kernel: as tuned, as measured or as estimated (`choose`); with precision `fast` also one
    of that precision, if it is estimated to be faster. A name takes that kernel. Raises TypeError or ValueError for
    what a name or precision can't be, KernelError where the kernel can't run.
    """
    check(name, precision)
    if product.out_dtype != product.dtype or product.biased:
        product = replace(product, out_dtype=product.dtype, biased=False)
    registered()  # those of entry points are loaded here, which changes the state
    return _select(product, device, name, precision, state(device))


def check(name: object, precision: object) -> None:
    """TypeError or ValueError for what a kernel's name or a precision can't be."""
    if not isinstance(name, str):
        raise TypeError(f"kernel={name!r}: must be a name, like 'psumbook' or 'cpu:psumbook'")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: must be one of {', '.join(PRECISIONS)}")


def state(device: Device) -> tuple[int, str]:
    """What choices were made under: other kernels, tables or instructions of the processor make others."""
    return registry.version(), isa.asked() if device == CPU else ""


def choose_anew() -> None:
    """Let every product look up the tables again."""
    tables.forget()
    registry.changed()


class Decision(NamedTuple):
    """A kernel, by its name, and why it is the one."""

    kernel: str
    why: str


def choose(
    product: Lookup,
    estimates: Mapping[str, float],
    tuned: Iterable[Choice] = (),
    crossovers: Iterable[Choice] = (),
) -> str:
    """The kernel that `decide` takes."""
    return decide(product, estimates, tuned, crossovers).kernel


def decide(
    product: Lookup,
    estimates: Mapping[str, float],
    tuned: Iterable[Choice] = (),
    crossovers: Iterable[Choice] = (),
) -> Decision:
    """The kernel for a product, one of those that `estimates` has a time for.

    1. A choice tuned on this device, for a weight of this very shape, configuration and dtype.
    2. A choice measured on a GPU of this architecture, for this configuration, this shape or else the nearest
       in its number of weights, and this dtype (float16 and bfloat16 are one).
    3. The least estimate.

    Of several batches the nearest in ratio counts (the smaller of two that are as near), up to `REACH`. Choices of
    kernels that aren't among the candidates are passed over.
    """
    wanted = (product,) if product.core is None else (product, product.core)
    recorded = [(each, each.choices(tuned, crossovers)) for each in wanted]
    for step, how in enumerate(("tuned", "measured")):
        for each, choices in recorded:
            known = [c for c in choices[step] if c.kernel in estimates]
            if known:
                best = min(known, key=lambda c: _unlike(c, each))
                rows = " to ".join(map(str, dict.fromkeys(best.batches)))
                return Decision(best.kernel, f"{how} with {rows} rows times {by(best.shape)} {best.weights}")
    return Decision(min(estimates, key=lambda name: estimates[name]), _estimated(estimates))


def _estimated(estimates: Mapping[str, float]) -> str:
    times = sorted((seconds, name) for name, seconds in estimates.items())
    return "estimated: " + ", ".join(f"{name} {format_time(seconds)}" for seconds, name in times)


def _unlike(choice: Choice, product: Lookup) -> tuple[bool, float, float, tuple[int, int]]:
    """The less, the sooner a choice counts for a product."""
    ratio = prod(choice.shape) / prod(product.shape)  # how many times one matrix has the other's weights
    return choice.shape != product.shape, max(ratio, 1 / ratio), choice.distance(product.n), choice.batches


def lookup_of(product: Product) -> Lookup:
    """What is looked up for a product."""
    spec, core = product.spec, core_of(product.spec)
    inner = None if core is spec else lookup_of(replace(product, spec=core))
    return Lookup(spec.name, spec.shape, product.n, product.dtype.name, inner)


@lru_cache(maxsize=1024)
def _select(product: Product, device: Device, name: str, precision: str, state: object) -> Kernel:
    """Decided, and told, once a product."""
    if name == "auto":
        kernel, why = _automatic(product, device, precision)
    else:
        kernel, why = _named(product, device, name), "named"
    rows, spec = counted(product.n, "row"), product.spec
    told = (rows, product.dtype, by(spec.shape), spec.name, device, kernel.name, why)
    _log.info("%s of %s times %s %s on %s: %s, %s", *told)
    return kernel


def _automatic(product: Product, device: Device, precision: str) -> tuple[Kernel, str]:
    kernel, why = _choose(product, device)
    if precision == "full":
        return kernel, why
    fast = (k for k in registered(device.engine, product.spec) if k.precision == precision)
    usable = [*(k for k in fast if not refusal(k, product, device)), kernel]
    estimates = {k.name: k.estimate(product, device) for k in usable}
    taken = min(usable, key=lambda k: estimates[k.name])
    return taken, why if taken is kernel else _estimated(estimates)


def _choose(product: Product, device: Device) -> tuple[Kernel, str]:
    candidates = registered(device.engine, product.spec)
    usable = {k.name: k for k in candidates if k.is_automatic(product) and not refusal(k, product, device)}
    if not usable:
        raise KernelError(
            f"no kernel is chosen automatically for this weight on {device}; name one: "
            + "; ".join(f"{k.name} ({refusal(k, product, device) or 'usable'})" for k in candidates)
        )
    estimates = {name: kernel.estimate(product, device) for name, kernel in usable.items()}
    name, why = decide(lookup_of(product), estimates, tables.tuned(device), _crossovers(device))
    return usable[name], why


def _crossovers(device: Device) -> tuple[Choice, ...]:
    return () if device == CPU else tables.crossovers(gpu_of(device).arch)


def _named(product: Product, device: Device, name: str) -> Kernel:
    engine, _, short = name.rpartition(":")
    named = [k for k in registered() if k.name == short and engine in ("", k.engine)]
    if not named:
        known = sorted({k.name for k in registered()})
        raise KernelError(f"kernel {name!r} is unknown; known: {', '.join(known)}")
    here = [k for k in named if k.engine == device.engine]
    if not here:
        raise KernelError(
            f"kernel {name!r} runs on {' and '.join(k.engine for k in named)} and the weight is on {device}: "
            "move it with w.to(...)"
        )
    kernel = kernel_for(here[0], product.spec)
    reason = refusal(kernel, product, device)
    if reason:
        raise KernelError(f"kernel {name!r} can't run here: {reason}")
    return kernel
