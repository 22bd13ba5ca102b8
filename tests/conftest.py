"""Fixtures and settings of all tests."""

import os

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

from backends import BACKENDS

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=12, **COMMON)
settings.register_profile("ci", max_examples=16, derandomize=True, print_blob=True, **COMMON)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    """Every array library in turn; a missing one is a visible skip, and a failure in CI."""
    request.param.require()
    return request.param


@pytest.fixture(autouse=True)
def formulas_on_torch(monkeypatch):
    """Without the forms that a Torch backend, made for another test, has left for tensors."""
    from siglip_ref import fused  # only when the hook that checks shapes is there

    kept = {
        (operation, kind): form
        for (operation, kind), form in fused._forms.items()
        if not kind.__module__.startswith("torch")
    }
    monkeypatch.setattr(fused, "_forms", kept)


@pytest.fixture
def unchecked():
    """Turn the shape checks of the tests off: bad arguments meet what a user's would."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
