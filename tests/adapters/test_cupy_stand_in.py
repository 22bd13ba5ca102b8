"""The stand-in for CuPy refuses what CuPy refuses, and notices a wait."""

import re
import sys
from contextlib import nullcontext

import numpy as np
import pytest

from cupy_cases.numbers import BFLOAT16

pytest.importorskip("cupy")
from cupy_stand_in import cublas, namespace, nccl
from cupy_stand_in.machine import MACHINE, SynchronizationError


@pytest.fixture(scope="module")
def cupy_backend():
    with namespace.installed() as siglip_cupy:
        yield siglip_cupy.CupyBackend()


def test_the_stand_in_has_no_name_that_cupy_lacks():
    assert namespace.names_that_the_real_one_lacks() == []


@pytest.mark.parametrize("library", [nccl, cublas], ids=["nccl", "cublas"])
def test_the_signatures_of_a_library_stand_in_the_real_bindings(library):
    name = library.__name__.rpartition(".")[2]
    real = namespace.file_of(name)
    for line in library.SIGNATURES.values():
        assert re.search(b"\\0" + re.escape(line.encode()) + rb"[\0\n]", real), line
    called = {path.partition(".")[0] for path in library.SIGNATURES}
    written = {x for x in library.__all__ if callable(getattr(library, x))} - {"NcclError"}
    assert called == written


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
        (lambda _, x: x.get(wait=True), "cupy.ndarray.get: .*'wait'"),
        (lambda cp, x: cp.asarray(x, device=0), "cupy.asarray: .*'device'"),
        (lambda cp, _: cp.RawModule(source=""), "cupy.RawModule: .*'source'"),
        (
            lambda cp, _: cp.RawModule(code="", options=[]),
            "cupy.RawModule: .*expected tuple, got list",
        ),
        (lambda cp, _: cp.cuda.Device(0, 1), "cupy.Device: too many positional"),
        (lambda cp, _: cp.cuda.Device().use(1), "cupy.Device.use: too many positional"),
        (lambda cp, _: cp.cuda.Stream(blocking=False), "cupy.Stream: .*'blocking'"),
        (lambda cp, _: cp.cuda.Stream().wait_event(), "cupy.Stream.wait_event: .*'event'"),
        (lambda cp, _: cp.cuda.Event(1, 2, 3, 4), "cupy.Event: too many positional"),
        (lambda cp, _: cp.cuda.MemoryPool().total_bytes(0), "cupy.MemoryPool.total_bytes: too"),
        (lambda cp, x: cp.exp(x, x, x), "takes 1 arrays"),
        (lambda cp, x: cp.mean(x.astype(BFLOAT16)), "not known to take bfloat16"),
        (lambda _, x: x.astype(BFLOAT16).reshape(1, 1, 2) @ x.astype(BFLOAT16), "more than two"),
    ],
)
def test_the_stand_in_refuses_what_cupy_refuses(call, error, cupy_backend):
    x = cupy_backend.asarray(np.ones(2))
    with pytest.raises((TypeError, AttributeError, AssertionError), match=error):
        call(sys.modules["cupy"], x)


ID = bytes(128)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: nccl.NcclCommunicator(1, (0,) * 128, 0), r"'commId'.*expected bytes, got tuple"),
        (lambda: nccl.NcclCommunicator(1, bytearray(ID), 0), "expected bytes, got bytearray"),
        (lambda: nccl.NcclCommunicator(1, ID[1:], 0), "commId length 127 != 128"),
        (lambda: nccl.NcclCommunicator(1, ID), "missing a required argument: 'rank'"),
        (lambda: nccl.NcclCommunicator(1.0, ID, 0), "cannot be interpreted as an integer"),
        (lambda: nccl.NcclCommunicator(1, ID, 0).send(0, 1, 7, 0), "required argument: 'stream'"),
        (lambda: nccl.NcclCommunicator(1, ID, 0).abort(1), "too many positional arguments"),
        (lambda: nccl.groupStart(1), "too many positional arguments"),
        (lambda: cublas.gemmEx(*range(18)), "missing a required argument: 'algo'"),
        (lambda: cublas.gemmEx(*range(18), 0.5), "cannot be interpreted as an integer"),
    ],
)
def test_the_stand_in_for_a_library_refuses_what_its_bindings_refuse(call, error):
    with pytest.raises((TypeError, ValueError), match=error):
        call()


def test_a_unique_id_is_bytes_and_each_is_another():
    one, two = nccl.get_unique_id(), nccl.get_unique_id()
    assert type(one) is bytes
    assert len(one) == 128
    assert one != two


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
