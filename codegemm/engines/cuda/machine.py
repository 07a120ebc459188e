"""What measurements on this engine depend on beside the product: the GPU and the engine's code."""

from __future__ import annotations

from pathlib import Path

from codegemm import devices
from codegemm.devices import Device
from codegemm.engines import package_files


def identity(device: Device) -> tuple[str, ...]:
    """The GPU's name."""
    return (devices.name(device),)


def files() -> list[Path]:
    """Of the kernels that come with the package: decisions and compiled sources."""
    return package_files("engines/*.py", "engines/cuda/*.py", "kernels_cu/*.cu*", "baselines/cuda/*.py")
