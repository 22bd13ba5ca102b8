"""The stand-in for CuPy refuses what CuPy refuses, and notices a wait."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest

from cupy_cases.numbers import BFLOAT16

pytest.importorskip("cupy")
from cupy_stand_in import namespace
from cupy_stand_in.machine import MACHINE, SynchronizationError


@pytest.fixture(scope="module")
def cupy_backend():
    with namespace.installed() as siglip_cupy:
        yield siglip_cupy.CupyBackend()


def test_the_stand_in_has_no_name_that_cupy_lacks():
    assert namespace.names_that_the_real_one_lacks() == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda cp, x: cp.sum(x, where=x > 0), "cupy.sum: got an unexpected keyword argument"),
        (lambda cp, x: cp.vecdot(x, x), "no attribute 'vecdot'"),
        (lambda _, x: x.to_device, "no attribute 'to_device'"),
        (lambda _, x: x.reshape(2, 1, shape=3), "unexpected keyword argument 'shape'"),
        (lambda _, x: x + np.ones(2), "Unsupported type"),
        (lambda _, x: np.ones(2) * x, "Unsupported type"),
        (lambda _, x: np.asarray(x), "Implicit conversion"),
        (lambda _, x: [1, 2, 3][x[0]], "indices must be integers"),
        (lambda cp, x: cp.exp(x, x, x), "takes 1 arrays"),
        (lambda cp, x: cp.mean(x.astype(BFLOAT16)), "not known to take bfloat16"),
        (lambda _, x: x.astype(BFLOAT16).reshape(1, 1, 2) @ x.astype(BFLOAT16), "more than two"),
    ],
)
def test_the_stand_in_refuses_what_cupy_refuses(call, error, cupy_backend):
    x = cupy_backend.asarray(np.ones(2))
    with pytest.raises((TypeError, AttributeError, AssertionError), match=error):
        call(sys.modules["cupy"], x)


@pytest.mark.parametrize(
    "wait",
    [float, bool, int, lambda x: x.item(), lambda x: x[x > 0], lambda x: x.get(), abs],
    ids=["float", "bool", "int", "item", "mask", "get", "nothing"],
)
def test_the_stand_in_notices_a_wait(wait, cupy_backend):
    x = cupy_backend.asarray(np.ones(()))
    waits = pytest.raises(SynchronizationError) if wait is not abs else nullcontext()
    with MACHINE.forbidding_waits(), waits:
        wait(x)
    with MACHINE.forbidding_waits(), pytest.raises(SynchronizationError):
        cupy_backend.asarray(np.ones(3))


def test_a_number_of_pythons_widens_bfloat16_as_in_cupy(cupy_backend):
    x = cupy_backend.asarray(np.ones(2, dtype=BFLOAT16))
    assert (x * 1.5).dtype == np.float32
    assert (x + x).dtype == BFLOAT16
    assert (cupy_backend.asarray(np.ones(2, dtype=np.float16)) * 1.5).dtype == np.float16
    assert (-x).dtype == BFLOAT16
