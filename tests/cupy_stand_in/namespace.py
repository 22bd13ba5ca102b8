"""CuPy without a GPU: modules that stand where CuPy's do, over NumPy.

Nothing has a name that the real CuPy, which can be imported without a GPU, has not; every call of a
function, of a class and of its methods is bound to the signature of the real one (signatures.py);
element-wise functions have the real one's loops; an array of NumPy's meets a TypeError; and what
would make the host wait for a device is counted, or refused. The CUDA kernels are the real source,
run on the host (host_module.py), and the products of cuBLAS take addresses and leading dimensions
(cublas.py).

Written by hand, and so no better than what its author knew: what a call does and returns, which
bfloat16 functions there are, the operators and indices of arrays, and the keywords of element-wise
functions.
"""

import importlib
import sys
import types
from contextlib import contextmanager
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import ClassVar

import cupy as real
import cupy_backends as real_backends
import cupyx as real_cupyx
import numpy as np

from cupy_stand_in import cublas, nccl
from cupy_stand_in.arrays import MOVING, Ufunc, matmul, ndarray, refuse_bfloat16, unwrapped, wrapped
from cupy_stand_in.host_module import HostModule
from cupy_stand_in.machine import MACHINE
from cupy_stand_in.signatures import check_call, like
from cupy_stand_in.streams import Event, Stream

LIBRARIES = "cupy_backends.cuda.libs"

ASIDE = ("cupy", "cupyx", "cupy_backends", "siglip_cupy", "array_api_compat.cupy")
"""Packages that are set aside while the stand-in is there, for they are or use the real CuPy."""


class Function:
    """A function by its NumPy namesake, called as the real one can be."""

    def __init__(self, name, real_module, numpy_module):
        self.name = name
        self.real = getattr(real_module, name)
        self.numpy = getattr(numpy_module, name)

    def __call__(self, *args, **kwargs):
        check_call(self.name, self.real, args, kwargs)
        if self.name not in MOVING:
            refuse_bfloat16(self.name, *args)
        return wrapped(self.numpy(*map(unwrapped, args), **unwrapped(kwargs)))


@like(real)
def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    """An array on the device; from the host it is a copy."""
    if isinstance(a, ndarray):
        return a if dtype is None or np.dtype(dtype) == a.dtype else a.astype(dtype)
    MACHINE.copy_to_device("asarray of what is on the host")
    return ndarray(np.array(unwrapped(a) if isinstance(a, list | tuple) else a, dtype=dtype))


@like(real)
def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    """As `asarray`, and a copy unless told otherwise."""
    made = asarray(obj, dtype=dtype)
    return ndarray(made.host.copy()) if copy and made is obj else made


@like(real)
def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    """A copy on the host."""
    return a.get(stream=stream, order=order, out=out, blocking=blocking)


@like(real)
class RawModule:
    """CUDA source, run on the host."""

    launched: ClassVar = []
    """Names of all kernels that were launched, in their order."""

    def __init__(self, *, code, options=(), name_expressions=None):
        self._host = HostModule(code, name_expressions)

    def get_function(self, name):
        kernel = self._host.get_function(name)

        def launch(*args, **options):
            check_call("RawKernel.__call__", real.RawKernel.__call__, args, options)
            self.launched.append(name)
            grid, block, values = args
            assert not options, f"the stand-in takes no {', '.join(options)}"
            kernel(grid, block, tuple(map(unwrapped, values)))

        return launch


@like(real.cuda)
class Device:
    """One of the devices, of which nothing is kept apart."""

    def __init__(self, device=None):
        self.id = MACHINE.device if device is None else device

    def __enter__(self):
        self._left, MACHINE.device = MACHINE.device, self.id
        return self

    def __exit__(self, *_):
        MACHINE.device = self._left

    def use(self):
        MACHINE.device = self.id

    def synchronize(self):
        MACHINE.wait("synchronize")


@like(real.cuda)
class MemoryPool:
    """A pool that has given out nothing; it is asked and answers."""

    def __init__(self, allocator=None):
        pass

    def total_bytes(self):
        return 512


@like(real)
def get_default_memory_pool():
    return MemoryPool()


@like(real_cupyx)
def empty_pinned(shape, dtype=float, order="C"):
    return np.empty(shape, dtype, order)


@like(real_cupyx)
def zeros_pinned(shape, dtype=float, order="C"):
    return np.zeros(shape, dtype, order)


@like(real.cuda.runtime)
def getDeviceCount():
    return MACHINE.devices


@like(real.cuda.device)
def get_cublas_handle():
    return cublas.HANDLE


@like(real.cuda)
def get_current_stream(device_id=-1):
    return _stream()


@cache
def _stream():
    return Stream()


def module(name, **contents):
    """A module with these contents."""
    made = types.ModuleType(name)
    made.__path__ = []
    vars(made).update(contents)
    return made


def stand_in_for(name, real_module, numpy_module):
    """A module with a namesake from NumPy for every function of the real one that has one."""
    contents = {}
    for public in dir(real_module):
        value = getattr(real_module, public)
        if public.startswith("_") or isinstance(value, types.ModuleType):
            continue
        if type(value).__name__ == "ufunc":
            contents[public] = Ufunc(public)
        elif isinstance(value, types.FunctionType | types.BuiltinFunctionType):
            if callable(getattr(numpy_module, public, None)):
                contents[public] = Function(public, real_module, numpy_module)
            else:
                contents[public] = missing(f"{name}.{public}")
        elif isinstance(value, float | type(None)) or getattr(value, "__module__", "") == "numpy":
            contents[public] = value
    return module(name, **contents)


def missing(name):
    """A function of the real CuPy that is not stood in for."""

    def function(*_, **__):
        raise NotImplementedError(f"the stand-in has no {name}")

    return function


@cache
def modules():
    """The stand-in's modules by name."""
    fake = stand_in_for("cupy", real, np)
    vars(fake).update(
        ndarray=ndarray,
        asarray=asarray,
        array=array,
        asnumpy=asnumpy,
        matmul=matmul,
        RawModule=RawModule,
        get_default_memory_pool=get_default_memory_pool,
        dtype=np.dtype,
        finfo=real.finfo,
        iinfo=real.iinfo,
        issubdtype=np.issubdtype,
        linalg=stand_in_for("cupy.linalg", real.linalg, np.linalg),
        fft=stand_in_for("cupy.fft", real.fft, np.fft),
    )
    runtime = module(
        "cupy.cuda.runtime",
        getDeviceCount=getDeviceCount,
        CUDARuntimeError=real.cuda.runtime.CUDARuntimeError,
        **cublas.CUDA_TYPES,
    )
    fake.cuda = module(
        "cupy.cuda",
        Device=Device,
        Stream=Stream,
        Event=Event,
        MemoryPool=MemoryPool,
        get_current_stream=get_current_stream,
        device=module("cupy.cuda.device", get_cublas_handle=get_cublas_handle),
        runtime=runtime,
    )
    fake.cuda.device.Device = Device
    bindings = {
        name: {public: getattr(ours, public) for public in ours.__all__}
        for name, ours in (("cublas", cublas), ("nccl", nccl))
    }
    libraries = {
        name: module(f"{LIBRARIES}.{name}", **contents) for name, contents in bindings.items()
    }
    cupyx = module("cupyx", empty_pinned=empty_pinned, zeros_pinned=zeros_pinned)
    return {
        "cupy": fake,
        "cupy.cuda": fake.cuda,
        "cupy.cuda.device": fake.cuda.device,
        "cupy.cuda.nccl": module("cupy.cuda.nccl", available=True, **bindings["nccl"]),
        "cupy.linalg": fake.linalg,
        "cupy.fft": fake.fft,
        "cupyx": cupyx,
        "cupy_backends": module("cupy_backends"),
        "cupy_backends.cuda": module("cupy_backends.cuda"),
        LIBRARIES: module(LIBRARIES, **libraries),
        **{made.__name__: made for made in libraries.values()},
    }


def file_of(name):
    """The bytes of the real bindings of a library, which can be read where they cannot be loaded.

    Cython leaves names and the lines with the signatures in them.
    """
    folder = Path(real_backends.__file__).parent / "cuda" / "libs"
    return (folder / f"{name}{EXTENSION_SUFFIXES[0]}").read_bytes()


def names_that_the_real_one_lacks():
    """Names in the stand-in's modules that are not CuPy's; there must be none."""
    pairs = {
        "cupy": real,
        "cupy.cuda": real.cuda,
        "cupy.cuda.device": real.cuda.device,
        "cupy.linalg": real.linalg,
        "cupy.fft": real.fft,
        "cupyx": real_cupyx,
    }
    pairs = {modules()[name]: value for name, value in pairs.items()}
    pairs |= {modules()["cupy.cuda"].runtime: real.cuda.runtime, Stream: real.cuda.Stream}
    pairs |= {Device: real.cuda.Device, Event: real.cuda.Event, ndarray: real.ndarray}
    pairs |= {MemoryPool: real.cuda.MemoryPool, RawModule: real.RawModule}
    unknown = [
        f"{name}.{public}"
        for name, ours in (("cublas", cublas), ("nccl", nccl))
        for public in ours.__all__
        if public.encode() not in file_of(name)
    ]
    return unknown + sorted(
        f"{getattr(ours, '__name__', ours)}.{public}"
        for ours, theirs in pairs.items()
        for public in vars(ours)
        if not public.startswith("_")
        and public not in ("host", "launched")
        and not hasattr(theirs, public)
    )


_loaded = {}
"""The packages that were imported over the stand-in, for the next time."""


@contextmanager
def installed():
    """Inside, `import cupy` gives the stand-in, and `siglip_cupy` is one made with it."""
    apart = _take_out()
    sys.modules.update(modules() | _loaded)
    try:
        yield importlib.import_module("siglip_cupy")
    finally:
        _loaded.update(_take_out())
        sys.modules.update(apart)


def _take_out():
    names = [name for name in sys.modules if name.startswith(ASIDE) and _is_aside(name)]
    return {name: sys.modules.pop(name) for name in names}


def _is_aside(name):
    return any(name == package or name.startswith(f"{package}.") for package in ASIDE)
