"""What measurements on this engine depend on beside the product: the processor, its instructions, the engine's code."""

from __future__ import annotations

from pathlib import Path

from codegemm.devices import Device
from codegemm.engines import package_files
from codegemm.engines.cpu import device as processor
from codegemm.engines.cpu import isa


def identity(device: Device) -> tuple[str, ...]:
    """The processor's name and the instruction set that products take."""
    return processor.name(), isa.chosen().name


def files() -> list[Path]:
    """Of the kernels that come with the package: decisions and compiled sources."""
    return package_files("engines/*.py", "engines/cpu/*.py", "engines/cpu/src/*.[ch]pp", "baselines/cpu/*.*p*")
