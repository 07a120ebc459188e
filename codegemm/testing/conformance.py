"""`check_kernel`: all checks with all weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from codegemm import registry
from codegemm.devices import CPU, FIRST_GPU, scope
from codegemm.kernel import Kernel
from codegemm.testing.checks import CHECKS
from codegemm.testing.problems import problems
from codegemm.testing.trial import Trial
from codegemm.warmup import build_all


@dataclass
class Checked:
    """What a kernel was held to.

    products: how many, by rows and dtypes. taken: the configurations of their weights. refused: the others, each with
    a reason that the kernel gave.
    """

    products: int = 0
    taken: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def check_kernel(kernel: Kernel | type[Kernel], *, seed: int = 0, tolerance: float | None = None) -> Checked:
    """Hold a kernel, an instance or a class without arguments, to all that `codegemm.Kernel` says; it need not be
    registered.

    It multiplies random weights of every registered format, and whatever stands around them, by 1 to 33 rows of x in
    every dtype, as far as it does not refuse to, and must keep to the float64 definition within its `tolerance` and to
    everything else that it owes; on the GPU `cuda:0` for one of the engine `cuda`.

    seed: of the weights and of x. tolerance: of the errors, in place of the kernel's own.

    Raises AssertionError with a sentence on the first product that is not as it must be, and for a kernel that refuses
    everything or that `register_kernel` would refuse; RuntimeError where it is not available on this machine.
    """
    kernel = kernel() if isinstance(kernel, type) else kernel
    try:
        registry.check(kernel)
    except (TypeError, ValueError) as error:
        raise AssertionError(str(error)) from error
    reason = kernel.unavailable()
    if reason:
        raise RuntimeError(f"kernel {kernel.full_name} can't be checked: {reason}")
    device, checked = CPU if kernel.engine == "cpu" else FIRST_GPU, Checked()
    with scope(device):
        for turn, problem in enumerate(problems()):
            trial = Trial(kernel, problem, device, seed + turn, turn, tolerance)
            if trial.taken:
                _check(trial)
                checked.products += len(trial.taken)
                checked.taken.append(problem.config)
            else:
                checked.refused[problem.config] = trial.refusals[0]
    if not checked.taken:
        reasons = "; ".join(dict.fromkeys(checked.refused.values()))
        raise AssertionError(f"kernel {kernel.full_name} refuses every product: {reasons}")
    return checked


def _check(trial: Trial) -> None:
    build_all(build for product in trial.taken for build in trial.ask(product, "builds", product, trial.device))
    for check in CHECKS:
        check(trial)
