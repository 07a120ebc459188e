"""Kernels that a module's tests need, compiled on all cores at once. A GPU's machine may lack what that takes."""

import pytest


@pytest.fixture(scope="module")
def compiled(request):
    """With the emulator: what the cases that run launch, by the module's `steps_of`."""
    from emulator import cases, emulate

    emulate.compile_steps(map(request.module.steps_of, cases.of_tests(request)))


@pytest.fixture(scope="module")
def cubins(request, tmp_path_factory):
    """By NVRTC: the paths of the module's `KERNELS`, by source, instance and architecture."""
    from support import sass

    return sass.compile_all(request.module.KERNELS, tmp_path_factory.mktemp("cubins"))
