"""Kernels that a module's tests need, compiled on all cores at once. A GPU's machine may lack what that takes."""

import pytest


@pytest.fixture(scope="module")
def compiled(request):
    """With the emulator: what the cases that run launch, by the module's `steps_of`."""
    from emulator import emulate

    items = (item for item in request.session.items if item.module is request.module)
    cases = (item.callspec.params["case"] for item in items if request.fixturename in item.fixturenames)
    emulate.compile_steps(map(request.module.steps_of, cases))
