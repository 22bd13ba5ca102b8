"""Arrays with the methods of `cupy.ndarray` and its refusals, kept in NumPy."""

import cupy as real
import ml_dtypes
import numpy as np

from cupy_stand_in.machine import MACHINE
from cupy_stand_in.signatures import check_call
from cupy_stand_in.streams import enqueue

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
MOVING = frozenset(
    (
        *("array", "arange", "ascontiguousarray", "astype", "broadcast_to", "can_cast"),
        *("concatenate", "copy", "empty", "empty_like", "expand_dims", "full", "full_like"),
        *("isdtype", "ones", "ones_like", "permute_dims", "ravel", "reshape", "result_type"),
        *("squeeze", "stack", "swapaxes", "take", "transpose", "where", "zeros", "zeros_like"),
    )
)
"""What only moves numbers, so that bfloat16 is as good as any other; of what computes, only the
element-wise functions have loops for it."""


class Memory:
    """Where the elements are: `array.data.ptr`."""

    def __init__(self, ptr):
        self.ptr = ptr


class ndarray:  # noqa: N801  (CuPy's name)
    """A CuPy array for all that the code under test can see."""

    __slots__ = ("host",)
    __array_ufunc__ = None

    def __init__(self, host):
        assert isinstance(host, np.ndarray)
        self.host = host

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    @property
    def data(self):
        return Memory(self.host.ctypes.data)

    @property
    def device(self):
        return 0

    def get(self, *args, **kwargs):
        check_call("ndarray.get", real.ndarray.get, args, kwargs)
        return self._get(*args, **kwargs)

    def _get(self, stream=None, order="C", out=None, blocking=True):
        if blocking:
            MACHINE.wait("get")
        if out is None:
            return np.array(self.host, order=order)
        assert out.dtype == self.host.dtype
        assert out.shape == self.host.shape
        if stream is None or blocking:
            out[...] = self.host
        else:
            enqueue(stream.ptr, lambda: np.copyto(out, self.host) is None)
        return out

    def astype(self, dtype, **options):
        check_call("ndarray.astype", real.ndarray.astype, (dtype,), options)
        return ndarray(np.asarray(self.host.astype(dtype, copy=options.get("copy", True))))

    def __getattr__(self, name):
        if not hasattr(real.ndarray, name):
            raise AttributeError(f"cupy.ndarray has no attribute {name!r}")
        value = getattr(self.host, name)
        if not callable(value):
            return wrapped(value) if isinstance(value, np.ndarray) else value
        if name in ("item", "tolist", "tobytes", "dump", "dumps", "tofile"):
            MACHINE.wait(name)

        def method(*args, **kwargs):
            check_call(f"ndarray.{name}", getattr(real.ndarray, name), args, kwargs)
            refuse_bfloat16(name, self)
            return wrapped(value(*map(unwrapped, args), **unwrapped(kwargs)))

        return method

    def __getitem__(self, key):
        key = unwrapped(key)
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, np.ndarray) and part.dtype == bool:
                MACHINE.wait("indexing with a mask")
        return wrapped(self.host[key])

    def __setitem__(self, key, value):
        self.host[unwrapped(key)] = unwrapped(value)

    def __len__(self):
        return len(self.host)

    def __iter__(self):
        return (self[number] for number in range(len(self)))

    def __bool__(self):
        MACHINE.wait("bool(array)")
        return bool(self.host)

    def __float__(self):
        MACHINE.wait("float(array)")
        return float(self.host)

    def __int__(self):
        MACHINE.wait("int(array)")
        return int(self.host)

    def __repr__(self):
        return f"stand-in {self.host!r}"


def unwrapped(tree):
    """NumPy's arrays for ours, in containers too; an array of NumPy's own is refused."""
    if isinstance(tree, ndarray):
        return tree.host
    if isinstance(tree, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(tree, list | tuple):
        return type(tree)(map(unwrapped, tree))
    if isinstance(tree, dict):
        return {key: unwrapped(value) for key, value in tree.items()}
    return tree


def wrapped(tree):
    """Our arrays for NumPy's; what NumPy reduces to a scalar stays on the device as a 0-d array."""
    if isinstance(tree, np.ndarray | np.generic):
        return ndarray(np.asarray(tree))
    if isinstance(tree, list | tuple) and not hasattr(tree, "_fields"):
        return type(tree)(map(wrapped, tree))
    return tree


def refuse_bfloat16(name, *args):
    """Of bfloat16 arrays only what is known to work."""
    if name not in MOVING and any(isinstance(x, ndarray) and x.dtype == BFLOAT16 for x in args):
        raise TypeError(f"cupy.{name} is not known to take bfloat16")


class Ufunc:
    """An element-wise function, with the loops of the real one."""

    def __init__(self, name):
        self.name = name
        self.real = getattr(real, name)
        self.numpy = getattr(np, name)

    def __call__(self, *args, out=None, **options):
        assert set(options) <= {"dtype", "casting", "where"}, f"cupy.{self.name}: {options}"
        assert len(args) == self.real.nin, f"cupy.{self.name} takes {self.real.nin} arrays"
        hosts = [unwrapped(arg) for arg in args]
        for host in hosts:
            if not isinstance(host, np.ndarray | np.generic | int | float | bool):
                raise TypeError(f"Unsupported type {type(host)}")
        taken, made = self._loop(hosts)
        hosts = [np.asarray(host, dtype=dtype) for host, dtype in zip(hosts, taken, strict=True)]
        result = self.numpy(*hosts, **options)
        if out is None:
            return wrapped(np.asarray(result, dtype=options.get("dtype", made)))
        out.host[...] = result
        return out

    def _loop(self, hosts):
        """The dtypes of inputs and output of the first loop that takes the arguments, as in CuPy:
        what is an array must be castable safely, what is a number of Python's must not widen."""
        for loop in self.real.types:
            taken, made = ([_dtype(char) for char in part] for part in loop.split("->"))
            if "V" not in loop and all(map(_fits, hosts, taken)):
                return taken, made[0]
        kinds = [getattr(host, "dtype", type(host)) for host in hosts]
        raise TypeError(f"cupy.{self.name} has no loop for {kinds}, only {self.real.types}")


def _dtype(char):
    return BFLOAT16 if char == "E" else np.dtype(char)


def _fits(host, dtype):
    if isinstance(host, np.ndarray | np.generic):
        return np.can_cast(host.dtype, dtype)
    return np.result_type(type(host)(0), dtype) == dtype


def matmul(a, b):
    """`a @ b` where CuPy has it; 16-bit products are summed in float32 and rounded."""
    left, right = unwrapped((a, b))
    dtype = np.result_type(left, right)
    if dtype.itemsize > 2:
        return wrapped(np.matmul(left, right))
    if max(left.ndim, right.ndim) > 2:
        raise TypeError(f"cupy.matmul has no {dtype} with more than two axes, or a slow one")
    product = np.matmul(left.astype(np.float32), right.astype(np.float32))
    return wrapped(product.astype(dtype))


BINARY = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
}
COMPARISONS = {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
}
UNARY = {"neg": "negative", "abs": "absolute", "invert": "invert"}


def _give_operators():
    for operator, name in {**BINARY, **COMPARISONS}.items():
        setattr(ndarray, f"__{operator}__", _method(Ufunc(name)))
    for operator, name in BINARY.items():
        setattr(ndarray, f"__r{operator}__", _reflected(Ufunc(name)))
        setattr(ndarray, f"__i{operator}__", _in_place(Ufunc(name)))
    for operator, name in UNARY.items():
        setattr(ndarray, f"__{operator}__", _method(Ufunc(name)))
    ndarray.__matmul__ = matmul
    ndarray.__hash__ = None


def _method(ufunc):
    def method(*args):
        return ufunc(*args)

    return method


def _reflected(ufunc):
    return lambda a, b: ufunc(b, a)


def _in_place(ufunc):
    return lambda a, b: ufunc(a, b, out=a)


_give_operators()
